"""Exact keys: what differs in anything that matters gets another key."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprise.engine_ext.request.exact_key import exact_key
from reprise.retrieval.api.namespace import check_namespace

BASE = {
    "namespace": "acme",
    "model_key": "model@1",
    "prompt_token_ids": [1, 2, 3],
    "sampling": {"temperature": 0.0, "max_tokens": 16, "stop": ["a", "b"]},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("namespace", "acm"),
        ("model_key", "model@2"),
        ("prompt_token_ids", [1, 2, 4]),
        ("prompt_token_ids", [1, 2]),
        ("sampling", {"temperature": 0.0, "max_tokens": 17, "stop": ["a", "b"]}),
        ("sampling", {"temperature": 0.0, "max_tokens": 16, "stop": ["b", "a"]}),
        ("sampling", {"temperature": 0.0, "max_tokens": 16}),
        ("sampling", {"temperature": 0, "max_tokens": 16, "stop": ["a", "b"]}),
    ],
)
def test_each_part_changes_the_key(name, value):
    assert exact_key(**(BASE | {name: value})) != exact_key(**BASE)


@pytest.mark.parametrize("same", [(1, 2, 3), np.array([1, 2, 3]), np.array([1, 2, 3], np.int32)])
def test_the_order_of_fields_and_the_kind_of_array_do_not(same):
    turned = dict(reversed(BASE["sampling"].items()))
    assert exact_key(**(BASE | {"sampling": turned, "prompt_token_ids": same})) == exact_key(**BASE)


@pytest.mark.parametrize("ids", [[1, object()], [2**70]])
def test_token_ids_without_an_encoding_are_refused(ids):
    with pytest.raises(ValueError, match="token ids must be plain integers"):
        exact_key(**(BASE | {"prompt_token_ids": ids}))


@given(left=st.text("ab@1", max_size=6), right=st.text("ab1", max_size=6))
def test_no_text_moves_from_one_part_to_the_next(left, right):
    one = exact_key(
        namespace="", model_key=left + right, prompt_token_ids=[], sampling={"stop": ""}
    )
    two = exact_key(namespace=right, model_key=left, prompt_token_ids=[], sampling={"stop": ""})
    assert (one == two) == (right == "")


def test_values_without_an_encoding_are_refused():
    with pytest.raises(ValueError, match="sampling fields must be plain values"):
        exact_key(**(BASE | {"sampling": {"processor": object()}}))


@pytest.mark.parametrize("namespace", ["", "a" * 128, "acme.eu-1", "租户", "{x}:y*"])
def test_namespaces_by_the_rule_for_salts(namespace):
    assert check_namespace(namespace) == namespace


@pytest.mark.parametrize("namespace", ["a" * 129, "a@b", "a/b", "a\\b", "a\0b", 7, None])
def test_other_namespaces_are_refused(namespace):
    with pytest.raises(ValueError, match="namespace must"):
        check_namespace(namespace)
