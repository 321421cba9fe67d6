"""Trace files are read strictly: whatever is wrong, one line names the file and the line."""

from pathlib import Path

import pytest

from reprise.eval.replay.traces import TraceError, TraceRow, load_trace, save_trace


def write(folder: Path, text: str) -> Path:
    path = folder / "t.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_round_trip_keeps_every_field(tmp_path: Path) -> None:
    rows = [
        TraceRow(prompt="p", response="r", warm=True, group="g"),
        TraceRow(prompt="p\u2028q\n", response="ü", cached="c", query="q", id="7"),
    ]
    save_trace(tmp_path / "t.jsonl", rows)
    assert load_trace(tmp_path / "t.jsonl") == rows


def test_blank_lines_and_unknown_fields_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, '\n{"prompt": "p", "response": "r", "extra": 1}\n\n')
    assert load_trace(path) == [TraceRow(prompt="p", response="r")]


def test_query_text_is_the_prompt_unless_there_is_a_query() -> None:
    assert TraceRow(prompt="p", response="r").query_text == "p"
    assert TraceRow(prompt="p", response="r", query="q").query_text == "q"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the trace is empty"),
        ('{"prompt": "p", "response": "r", "warm": true}', "every row is warm"),
        ('{"prompt": "p", "response": "r"}\nnot json', r"t\.jsonl:2: not JSON"),
        ("[1]", r"t\.jsonl:1: expected a JSON object, got list"),
        ('{"response": "r"}', r"t\.jsonl:1: the row has no 'prompt'"),
        ('\n{"prompt": "p"}', r"t\.jsonl:2: the row has no 'response'"),
        ('{"prompt": "", "response": "r"}', "'prompt' must be a non-empty string"),
        ('{"prompt": "p", "response": 3}', "'response' must be a non-empty string"),
        ('{"prompt": "p", "response": "r", "cached": 3}', "'cached' must be a string"),
        ('{"prompt": "p", "response": "r", "warm": 1}', "'warm' must be true or false"),
        ("[" * 100_000, "not usable JSON|not JSON"),
    ],
)
def test_bad_traces(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        load_trace(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_missing_file_and_wrong_encoding(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere\.jsonl: no such file"):
        load_trace(tmp_path / "nowhere.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xff", "response": "r"}')
    with pytest.raises(TraceError, match="cannot be read as UTF-8"):
        load_trace(tmp_path / "latin.jsonl")
