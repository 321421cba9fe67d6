"""No query to Milvus leaves its namespace, whatever anybody calls it."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprise.retrieval.remote import milvus_filter, milvus_index, milvus_removal
from reprise.retrieval.remote.milvus_filter import (
    CreatedBefore,
    WithinNamespace,
    partition_of,
    row_of,
    within,
)

HOSTILE = [
    *('" or 1 == 1 or "', "a' or ''=='", '\\", ', 'x" in ['),
    *("\n", "\x00", "{}", "%", "租户", ""),
]
WHOLE = re.compile(r'namespace == "[0-9a-f]{32}"')
SOME = re.compile(WHOLE.pattern + r' and row_id in \[("[0-9a-f]{32}"(, )?)*\]')


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_digits_in_a_filter(text):
    assert WHOLE.fullmatch(within(text).text)
    assert SOME.fullmatch(within(text, [text, *HOSTILE]).text)


@given(st.text(), st.text(), st.text())
def test_any_text_is_digits_in_a_filter(namespace, first, second):
    assert SOME.fullmatch(within(namespace, [first, second]).text)


@given(st.text(), st.text())
def test_other_namespaces_have_other_names(one, other):
    assert (partition_of(one) == partition_of(other)) == (one == other)
    # An id cannot be chosen so that it is another namespace's row.
    assert (row_of(one, other) == row_of(other, one)) == (one == other)


@pytest.mark.parametrize("name", [*HOSTILE, "A" * 32, "0" * 31, "0" * 33, None, 7])
def test_a_filter_of_anything_else_cannot_be_built(name):
    with pytest.raises(ValueError, match="expected 32 hexadecimal digits"):
        WithinNamespace(name)
    with pytest.raises(ValueError, match="expected 32 hexadecimal digits"):
        WithinNamespace("0" * 32, (name,))


def test_a_filter_without_a_namespace_cannot_be_built():
    with pytest.raises(TypeError):
        WithinNamespace()
    with pytest.raises(TypeError):
        WithinNamespace(row_ids=())
    for filter_ in (within(""), CreatedBefore(1.0)):
        with pytest.raises((AttributeError, TypeError)):
            filter_.text = ""


@pytest.mark.parametrize("created_s", [float("nan"), float("inf")])
def test_an_age_is_a_number(created_s):
    with pytest.raises(ValueError, match="expected seconds"):
        CreatedBefore(created_s)


def test_nothing_is_asked_of_milvus_without_such_a_filter():
    """Every call that reads or deletes rows names a filter, and that is one of these classes'."""
    asked = []
    for path in Path(milvus_filter.__file__).parent.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = getattr(call.args[0], "value", None)
            if isinstance(call.func, ast.Attribute) and call.func.attr == "_call":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                if name in ("search", "delete", "query", "get", "hybrid_search"):
                    assert keywords["filter"] == "where.text", path
                    asked.append(name)
                else:
                    assert name in ("upsert", "flush", "list_collections"), path
    assert sorted(asked) == ["delete", "search"]
    for module in (milvus_index, milvus_removal):
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert not re.search(r"client\.(search|query|delete|get|hybrid_search)\(", source)


def test_what_searches_takes_a_namespace_and_no_filter():
    class Client:
        def search(self, **options):
            self.options = options
            return []

    index = object.__new__(milvus_index.MilvusIndex)
    index._client, index._timeout_s, index.collection = Client(), 1.0, "c"
    index.search('" or 1 == 1 or "', [], 8)
    assert index._client.options["filter"] == within('" or 1 == 1 or "').text
