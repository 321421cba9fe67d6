"""Files as programs and editors leave them are read, or refused in one line that names the line."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.retrieval.chat_logs.log_rows import LogError, LogRow, read_log

ROWS = [{"prompt": "hi\u2028ü", "n": 1}, {"prompt": "there 🙂", "n": None}]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


@pytest.fixture
def read(tmp_path: Path):
    def read(content: str | bytes) -> list[LogRow]:
        path = tmp_path / "log"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return list(read_log(path))

    return read


def refused(read, content: str | bytes) -> str:
    with pytest.raises(LogError) as caught:
        read(content)
    assert "\n" not in str(caught.value)
    assert "log" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES),
        "\n".join(LINES) + "\n",
        "\r\n".join(LINES) + "\r\n",
        "\n\n \t\n" + "\n\n\n".join(LINES) + "\n \r\n\n",
        "\ufeff" + "\n".join(LINES),
        "\ufeff" + LINES[0] + "\n\ufeff" + LINES[1],  # files put together
        "[" + ",".join(LINES) + "]",
        "[\n" + ",\r\n".join(LINES) + "\n]\n",
        "\ufeff\n" + json.dumps(ROWS, indent=4),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "  ".join(LINES),
        "\n".join(LINES).replace("null", "NaN"),
        "[" + ",".join(LINES).replace("null", "-Infinity") + "]",
    ],
)
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "gzip", "gzip of utf-16-le"]
)
def test_rows_are_found(read, content: str, encoding: str) -> None:
    name = encoding.removeprefix("gzip").removeprefix(" of ") or "utf-8"
    # With a mark the first of these, without one the other two.
    encoded = (content.lstrip("\ufeff") if "16" in name else content).encode(name)
    packed = gzip.compress(encoded) if "gzip" in encoding else encoded
    assert [row.fields for row in read(packed)] == ROWS


def test_the_number_of_the_line_is_where_a_row_begins(read) -> None:
    assert [row.line_number for row in read("\n" + "\n\n".join(LINES))] == [2, 4]
    assert [row.line_number for row in read(json.dumps(ROWS, indent=1))] == [2, 6]


def test_gzip_may_be_of_several_members(read) -> None:
    packed = b"".join(gzip.compress(line.encode() + b"\n") for line in LINES)
    assert [row.fields for row in read(packed)] == ROWS


def test_an_empty_file_has_no_rows(read) -> None:
    for content in ("", "\n \r\n", "\ufeff", "[]", "[ \n ]\n", gzip.compress(b"")):
        assert read(content) == []


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ('{"a": 1}\n{"a": 2},\n', 2, "a comma after the row, which JSON Lines does not have"),
        ('{"a": 1},\n{"a": 2}\n', 1, "a comma after the row, which JSON Lines does not have"),
        ('{\n"a": 1\n},\n{\n"a": 2\n}\n', 3, "a comma after the row, outside of an array"),
        ('{"a": 1}\n{\n "a": 1,\n}\n', 4, "a comma before the closing }"),
        ('{"a": 1}\n{"a": \n{"a": 2}\n', 2, "not JSON: the text ends within a row"),
        ('{"a": 1}\n\n{"a": 1,}\n', 3, "a comma before the closing }"),
        ('{"a": [1, ]}\n', 1, "a comma before the closing ]"),
        ('[\n{"a": 1},\n{"a": 2},\n]\n', 4, "a comma before the closing ]"),
        ('[\n{"a": 1}\n{"a": 2}\n]\n', 2, "a comma or the closing ] of the array is missing"),
        ('[\n{"a": 1},\n{"a": 2}\n', 3, "a comma or the closing ] of the array is missing"),
        ('[{"a": 1},\n', 1, "the closing ] of the array is missing"),
        ('[{"a": 1}]\n\n{"a": 2}\n', 3, "more text after the array: '{\"a\": 2}'"),
        ('{"a": 1}\n{"a": 2} there\n', 2, "more text after the row: 'there'"),
        ('{"a": 1}\n{"a": \n', 2, "not JSON: the text ends within a row"),
        ('{"a": 1}\n{"a": "x\n', 2, "not JSON: Unterminated string starting at at column 7"),
        (
            "{'a': 1}\n",
            1,
            "not JSON: Expecting property name enclosed in double quotes at column 2",
        ),
        ('{"a": 1}\nid,prompt\n', 2, "not JSON: Expecting value at column 1"),
        ("id,prompt\n1,hi\n", 1, "neither JSON nor vLLM's log of requests: 'id,prompt'"),
        ('{"a": 1}\n[1]\n', 2, "expected a JSON object, got list"),
        ('[{"a": 1},\n5]', 2, "expected a JSON object, got int"),
        ('{"a": 1}\n' + '{"a":' * 100_000, 2, "nested too deeply"),
        ('{"a": 1}\n{"a": "\\ud83d"}\n', 2, "half of a character"),
        ('[{"a": 1},\n{"a": "\\udc00 x"}]', 2, "half of a character"),
        ('{"a": 1}\n{"a": NaN, "n": ' + "9" * 5000 + "}", 2, "Exceeds the limit"),
        (b'{"a": 1}\n{"a": "\xff"}\n', 2, "not UTF-8: byte 0xff at column 8"),
        (b"[\n" + b'{"a": "\xfc"}]', 2, "not UTF-8: byte 0xfc at column 8"),
        (b"\x28\xb5\x2f\xfdxyz", 1, "packed by zstd; only gzip is unpacked here"),
        (b"PK\x03\x04xyz", 1, "packed by zip; only gzip is unpacked here"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    read, content: str | bytes, line: int, problem: str
) -> None:
    message = refused(read, content)
    assert f"log, line {line}: " in message
    assert problem in message


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"\n" * 100, mtime=0)[:-9], b"\x1f\x8bnonsense", b"\xff\xfe\x00\xd8\x00"],
)
def test_a_damaged_file_is_refused(read, content: bytes) -> None:
    assert "cannot read" in refused(read, content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"cannot read .*nowhere: no such file"):
        list(read_log(tmp_path / "nowhere"))
    with pytest.raises(LogError, match="cannot read"):
        list(read_log(tmp_path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4),
    indent=st.sampled_from([None, 1]),
    is_array=st.booleans(),
    is_ascii=st.booleans(),
    ends=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_whatever_is_written_is_read(
    tmp_path_factory, rows, indent: int | None, is_array: bool, is_ascii: bool, ends: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    many = rows if not is_array else [rows]
    texts = [json.dumps(each, indent=indent, ensure_ascii=is_ascii) for each in many]
    path.write_bytes(ends.join(texts).encode("utf-8", "surrogatepass"))
    try:
        assert [row.fields for row in read_log(path)] == rows
    except LogError as error:
        assert "half of a character" in str(error) or "not UTF-8" in str(error)  # noqa: PT017
        assert any("\ud800" <= c <= "\udfff" for c in json.dumps(rows, ensure_ascii=False))
