"""Trace files are read strictly: whatever is wrong, one line names the file and the line."""

import json
from pathlib import Path

import pytest

from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.traces import TraceError, TraceRow, limit_rows, load_trace, save_trace


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


USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "there"}
SYSTEM = {"role": "system", "content": "be kind"}


def test_a_chat_is_a_row_for_each_reply(tmp_path: Path) -> None:
    row = {"messages": [SYSTEM, USER, REPLY, USER, REPLY], "id": 7, "warm": True}
    path = write(tmp_path, json.dumps(row) + "\n" + json.dumps({"messages": [USER, REPLY]}))
    first, second, alone = load_trace(path)
    assert first == TraceRow(
        prompt="system: be kind\n\nuser: hi",
        response="there",
        query="hi",
        messages=[SYSTEM, USER],
        id="7",
        warm=True,
    )
    assert second.messages == [SYSTEM, USER, REPLY, USER]
    assert alone == TraceRow(prompt="hi", response="there", messages=[USER])
    save_trace(tmp_path / "again.jsonl", [first, second, alone])
    assert load_trace(tmp_path / "again.jsonl") == [first, second, alone]


def test_a_rendered_prompt_stays_one(tmp_path: Path) -> None:
    log = (
        "INFO Request a-1 details: prompt: '<u>hi<a>', prompt_token_ids: [1]\n"
        "INFO Generated response a-1: output: 'there', finish_reason: stop\n"
        "INFO Generated response a-0: output: 'there', finish_reason: stop\n"
    )
    empty: list[None] = []
    rows = load_trace(write(tmp_path, log), on_empty=lambda: empty.append(None))
    assert rows == [TraceRow(prompt="<u>hi<a>", response="there", rendered=True)]
    assert len(empty) == 1
    save_trace(tmp_path / "again.jsonl", rows)
    assert load_trace(tmp_path / "again.jsonl") == rows


def test_rows_without_a_question_or_an_answer_are_left_out(tmp_path: Path) -> None:
    empty: list[None] = []
    texts = [("p", ""), ("", "r"), ("p", None), (None, "r"), ("p", "r")]
    rows = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in texts]
    trace = write(tmp_path, "\n".join(rows))
    assert load_trace(trace, on_empty=lambda: empty.append(None)) == [
        TraceRow(prompt="p", response="r")
    ]
    assert len(empty) == 4


def test_query_text_is_the_prompt_unless_there_is_a_query() -> None:
    assert TraceRow(prompt="p", response="r").query_text == "p"
    assert TraceRow(prompt="p", response="r", query="q").query_text == "q"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the trace is empty"),
        ('{"messages": []}', "the trace is empty"),
        ('{"messages": 5}', r"t\.jsonl, line 1: expected a list in messages"),
        ('{"prompt_token_ids": [1]}', "no 'prompt'; it has token ids, not text"),
        (
            '{"query": "q", "messages": [{"role": "user", "content": "u"},'
            ' {"role": "assistant", "content": "a"},'
            ' {"role": "assistant", "content": "b"}]}',
            "'query' are of one answer",
        ),
        ('{"prompt": "p", "response": "r", "rendered": "no"}', "'rendered' must be true or false"),
        ('{"prompt": "p", "response": "r", "warm": true}', "every row is warm"),
        ('{"prompt": "p", "response": "r"}\nnot json', r"t\.jsonl, line 2: not JSON"),
        ("[1]", r"t\.jsonl, line 1: expected a JSON object, got int"),
        ('{"response": "r"}', r"t\.jsonl, line 1: the row has no 'prompt'"),
        ('\n{"prompt": "p"}', r"t\.jsonl, line 2: the row has no 'response'"),
        ('{"prompt": "", "response": "r"}', "the trace is empty"),
        ('{"prompt": 3, "response": ""}', "'prompt' must be a string"),
        ('{"prompt": "p", "response": 3}', "'response' must be a string"),
        ('{"prompt": "p", "response": "r", "cached": 3}', "'cached' must be a string"),
        ('{"prompt": "p", "response": "r", "warm": 1}', "'warm' must be true or false"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_traces(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        load_trace(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_missing_file_and_wrong_encoding(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot read .*nowhere\.jsonl: no such file"):
        load_trace(tmp_path / "nowhere.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xff", "response": "r"}')
    with pytest.raises(TraceError, match=r"latin\.jsonl, line 1: not UTF-8"):
        load_trace(tmp_path / "latin.jsonl")


def test_the_limit_counts_requests_and_not_what_fills_the_cache() -> None:
    rows = make_demo_trace()
    taken = limit_rows(rows, 2)
    assert sum(not row.warm for row in taken) == 2
    assert sum(row.warm for row in taken) == sum(row.warm for row in rows)
    assert limit_rows(rows, None) == list(rows)
