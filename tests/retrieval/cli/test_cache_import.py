"""`reprise cache import`: traces, chat logs, and lines that it refuses."""

import json
import os
import re
import socket
from pathlib import Path

import pytest

from reprise.retrieval.cli import import_command, tier_access
from reprise.retrieval.query.tokenizer_key import vocabulary_key
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.tests.retrieval.cli.cache_command import answer, refused, run


def test_traces_are_imported_with_a_tokenizer(url, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"cancel": 0, "my": 1, "order": 2, "?": 3}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"prompt": "cancel my order", "response": "order cancel", "warm": true}\n\n')
    assert "needs --tokenizer" in refused("import", trace, "--url", url)
    run("import", trace, "--url", url, "--tokenizer", tmp_path / "tokenizer.json")
    tier = SqliteTier(tmp_path / "answers.sqlite")
    [imported] = tier.answers("")
    assert imported.prompt_token_ids.tolist() == [0, 1, 2]
    assert imported.response_token_ids.tolist() == [2, 0]
    assert imported.prompt_text == "cancel my order"
    tier.close()


@pytest.fixture
def chat_tokenizer(tmp_path):
    """The folder of a tokenizer with a chat template; each word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["?", "<u>", "<a>", "hi", "there", "bye", "now", "be", "kind", "<s>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    fast.chat_template = (
        "{% for m in messages %}<{{ m['role'][0] }}> {{ m['content'] }} {% endfor %}<a>"
    )
    fast.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


# <u> hi <a> there
HI_THERE = ([1, 3, 2], [4])
CHAT_ROWS = {
    "messages": {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "there"},
        ]
    },
    "content in parts": {
        "id": 17,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "there"},
        ],
    },
    "ShareGPT": {
        "id": "a",
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "there"}],
    },
    "request and response": {
        "request": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
        "response": {"id": "x", "choices": [{"message": {"content": "there"}}]},
    },
    "batch file": {
        "custom_id": 3,
        "body": {"messages": [{"role": "user", "content": "hi"}]},
        "response": {
            "status_code": 200,
            "body": {"choices": [{"message": {"role": "assistant", "content": "there"}}]},
        },
    },
    "side by side": {"messages": [{"role": "user", "content": "hi"}], "response": "there"},
    "LiteLLM": {
        "call_type": "acompletion",
        "status": "success",
        "messages": [{"role": "user", "content": "hi"}],
        "response": {"choices": [{"message": {"content": "there"}}]},
    },
    "vLLM": {"request": {"prompt": "<u> hi <a>"}, "response": {"choices": [{"text": "there"}]}},
}


def imported(tmp_path, namespace=""):
    tier = SqliteTier(tmp_path / "answers.sqlite")
    found = list(tier.answers(namespace))
    tier.close()
    return {
        (tuple(a.prompt_token_ids.tolist()), tuple(a.response_token_ids.tolist())) for a in found
    }


@pytest.mark.parametrize("kind", CHAT_ROWS)
@pytest.mark.parametrize("packed", [False, True])
def test_chat_logs_are_imported(url, tmp_path, chat_tokenizer, kind, packed):
    import gzip

    text = json.dumps(CHAT_ROWS[kind]).encode() + b"\n"
    log = tmp_path / "log.jsonl"
    log.write_bytes(gzip.compress(text) if packed else text)
    assert "a chat log needs --tokenizer" in refused("import", log, "--url", url)
    assert "1 answer imported" in run("import", log, "--url", url, "--tokenizer", chat_tokenizer)
    assert imported(tmp_path) == {tuple(map(tuple, HI_THERE))}


def test_vllms_own_log_is_imported(url, tmp_path, chat_tokenizer):
    log = tmp_path / "server.log"
    log.write_text(
        "INFO 11-29 14:00:00 vLLM API server\n"
        "DEBUG Request a-1 details: prompt: '<s> be kind <u> hi <a>', prompt_token_ids: [1]\n"
        "INFO Generated response a-1: output: 'there', finish_reason: stop\n"
    )
    assert "1 answer imported" in run("import", log, "--url", url, "--tokenizer", chat_tokenizer)
    assert imported(tmp_path) == {((9, 7, 8, 1, 3, 2), (4,))}
    tier = SqliteTier(tmp_path / "answers.sqlite")
    assert [answer.prompt_text for answer in tier.answers("")] == ["hi"]
    tier.close()


def test_a_conversation_gives_an_answer_for_each_reply(url, tmp_path, chat_tokenizer):
    log = tmp_path / "log.json"  # one array over several lines, as ShareGPT comes
    turns = [("system", "be kind"), ("human", "hi"), ("gpt", "there")]
    turns += [("human", "bye"), ("gpt", "now")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    unanswered = {"messages": [{"role": "user", "content": "hi"}]}
    log.write_text(json.dumps([row, unanswered], indent=1))
    output = run("import", log, "--url", url, "--tokenizer", chat_tokenizer)
    assert "2 answers imported" in output
    assert "; 1 row without a question or an answer left out" in output
    first, second = (9, 7, 8, 1, 3, 2), (9, 7, 8, 1, 3, 2, 4, 1, 5, 2)
    assert imported(tmp_path) == {(first, (4,)), (second, (6,))}


EMPTY_ROWS = [
    {"prompt": "hi", "response": ""},
    {"prompt": "", "response": "there"},
    {"prompt": "hi", "response": None},
    {"prompt": [], "response": [1]},
    {"prompt_token_ids": [1], "response_token_ids": []},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]},
    {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "there"}]},
    {"request": {"prompt": ""}, "response": {"choices": [{"text": "there"}]}},
]


def test_rows_without_a_question_or_an_answer_are_left_out(url, tmp_path, chat_tokenizer):
    log = tmp_path / "rows.jsonl"
    given = ("import", log, "--url", url, "--model", chat_tokenizer)
    log.write_text("\n".join(map(json.dumps, [*EMPTY_ROWS, {"prompt": "hi", "response": "now"}])))
    output = run(*given)
    assert "1 new, 0 already known; 8 rows without a question or an answer left out" in output
    assert imported(tmp_path) == {((3,), (6,))}
    log.write_text("\n".join(map(json.dumps, EMPTY_ROWS)))
    assert f"{log} holds no answers; 8 rows without" in refused(*given)
    log.write_text("\n")
    assert refused(*given) == f"{log} holds no answers"


def test_what_was_known_already_is_told_apart(url, tmp_path):
    rows = [{"prompt_token_ids": [n % 6], "response_token_ids": [n % 6, 7]} for n in range(18)]
    log = tmp_path / "rows.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)))
    given = ("import", log, "--url", url, "--tokenizer-key", "k")
    assert "6 new, 12 already known" in run(*given)
    assert "0 new, 18 already known" in run(*given)


def test_ids_may_be_integers(url, tmp_path):
    log = tmp_path / "rows.jsonl"
    row = {"answer_id": 5, "namespace": 7, "prompt": [1, 2], "response": [3]}
    log.write_text(json.dumps(row))
    assert "1 new, 0 already known" in run("import", log, "--url", url, "--tokenizer-key", "k")
    assert imported(tmp_path, "7") == {((1, 2), (3,))}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("5", "expected a JSON object, got int"),
        ("{}", "expected token ids, a prompt and a response, messages, conversations"),
        ('{"messages": "hi"}', "expected a list in messages, got str"),
        ('{"messages": [5]}', "expected an object in messages[0], got int"),
        ('{"conversations": [{"value": "hi"}]}', "expected role and content (or from and value)"),
        ('{"messages": [{"role": "user", "content": 5}]}', "expected text in messages[0], got int"),
        (
            '{"request": 5, "response": {"choices": [{"text": "x"}]}}',
            "expected an object in request",
        ),
        ('{"request": {}, "response": {"choices": 5}}', "expected a list of choices"),
        (
            '{"request": {}, "response": {"choices": [{"text": "x"}]}}',
            "expected messages, input or a prompt",
        ),
        ('{"prompt": "a", "response": {}}', "Expected `str | array | null`"),
        ('{"answer_id": []}', "Expected `int | str | null`"),
        ('{"prompt": [1], "response": [2], "uses": -1}', "Expected `int` >= 0"),
        ('{"prompt": [1], "response": [2], "uses": 9223372036854775807}', "Expected `int` <="),
        ('{"prompt": [1], "response": [2], "accepted_tokens": 1e19}', "Expected `int`"),
        ('{"prompt": [1], "response": [2], "created_s": 1e300}', "Expected `float` <="),
    ],
)
def test_a_refused_line_says_what_was_expected(url, tmp_path, line, expected):
    log = tmp_path / "rows.jsonl"
    log.write_text('{"prompt_token_ids": [1], "response_token_ids": [2]}\n\n' + line + "\n")
    message = refused("import", log, "--url", url)
    assert "rows.jsonl, line 3: " in message
    assert expected in message
    assert not (tmp_path / "answers.sqlite").exists()


def test_damaged_packed_files_are_refused(url, tmp_path):
    import gzip

    log = tmp_path / "rows.jsonl.gz"
    for damaged in (gzip.compress(b"\n" * 100)[:-9], b"\x1f\x8bnonsense"):
        log.write_bytes(damaged)
        assert "cannot read" in refused("import", log, "--url", url)
    log.write_text('[{"prompt": ')
    assert "line 1: not JSON: the text ends within a row" in refused("import", log, "--url", url)


def test_an_import_that_was_interrupted_goes_on(url, tmp_path, monkeypatch):
    rows = [{"prompt_token_ids": [n], "response_token_ids": [n, 7]} for n in range(600)]
    log = tmp_path / "rows.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)))
    given = ("import", log, "--url", url, "--tokenizer-key", "k")
    written = []
    put = SqliteTier.put

    def interrupted(tier, answers):
        if written:
            raise KeyboardInterrupt
        written.extend(answers)
        return put(tier, answers)

    monkeypatch.setattr(SqliteTier, "put", interrupted)
    run(*given, status=130)
    assert 0 < len(written) < 600
    rest = []
    monkeypatch.setattr(SqliteTier, "put", lambda tier, a: rest.extend(a) or put(tier, a))
    assert f"{600 - len(written)} new, {len(written)} already known" in run(*given)
    assert len(rest) == 600 - len(written)
    # Answers that were put there without the right key are put there anew.
    rest.clear()
    run(*given[:-1], "other")
    assert len(rest) == 600


def test_an_import_reads_nothing_but_its_own_answers_in_a_tier(url, tmp_path, monkeypatch, fill):
    fill(*map(answer, range(3)))
    monkeypatch.setattr(SqliteTier, "answers", None)  # a tier may hold millions
    rows = [{"answer_id": f"id{n}", "prompt": [n], "response": [n]} for n in (2, 3)]
    log = tmp_path / "rows.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)))
    given = ("import", log, "--url", url, "--namespace", "acme", "--tokenizer-key", "k")
    assert "1 new, 1 already known" in run(*given)


def test_what_is_no_tokenizer_is_refused_in_plain_words(url, tmp_path):
    given = ("import", tmp_path / "rows.jsonl", "--url", url)
    assert "the folder holds none" in refused(*given, "--model", tmp_path)
    assert "there is no such folder" in refused(*given, "--model", tmp_path / "missing")
    assert "--tokenizer-key must not be empty" in refused(*given, "--tokenizer-key", "")


def test_a_tier_that_cannot_be_reached_is_refused_before_the_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(import_command, "read_rows", None)
    log = tmp_path / "rows.jsonl"
    log.touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert "Connection refused" in refused("import", log, "--url", f"redis://127.0.0.1:{port}/0")
    missing = tmp_path / "missing"
    output = refused("import", log, "--url", f"sqlite:///{missing}/answers.sqlite")
    assert f"there is no folder {missing}" in output
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    output = refused("import", log, "--url", f"sqlite:///{tmp_path}/answers.sqlite")
    assert f"{tmp_path} cannot be written to" in output


def test_what_servers_would_ignore_is_refused(url, tmp_path, chat_tokenizer):
    log = tmp_path / "rows.jsonl"
    row = {"prompt_token_ids": [1], "response_token_ids": [2]}
    log.write_text(json.dumps(row))
    assert "name the model that is served by --model" in refused("import", log, "--url", url)
    output = run("import", log, "--url", url, "--model", chat_tokenizer)
    [held] = SqliteTier(tmp_path / "answers.sqlite").answers("")
    assert held.tokenizer_key == vocabulary_key(str(chat_tokenizer))
    assert held.tokenizer_key in output
    log.write_text(json.dumps({**row, "tokenizer_key": "another"}))
    given = ("import", log, "--url", url)
    assert "made with another tokenizer (another)" in refused(*given, "--model", chat_tokenizer)
    assert "1 answer imported" in run(*given)


def test_without_a_terminal_lines_say_how_far_it_is(url, tmp_path, monkeypatch):
    monkeypatch.setattr(tier_access, "LINE_EVERY_S", 0.0)
    rows = [{"prompt_token_ids": [n], "response_token_ids": [n, 7]} for n in range(600)]
    log = tmp_path / "rows.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)))
    given = ("import", log, "--url", url, "--tokenizer-key", "k")
    output = run(*given)
    assert re.search(r"^Reading: 599 after \d+ s$", output, re.MULTILINE)
    assert re.search(r"^Importing: 599 of 600 after \d+ s$", output, re.MULTILINE)
    monkeypatch.undo()
    assert "after" not in run(*given)
