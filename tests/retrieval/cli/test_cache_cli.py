"""`reprise cache` as a user runs it, over SQLite; Redis differs only in its URL."""

import json
import re
import sqlite3
import time

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from reprise.retrieval import Answer
from reprise.retrieval.cli.answer_rows import row_of
from reprise.retrieval.cli.cache_cli import app
from reprise.retrieval.query.tokenizer_key import vocabulary_key
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.sqlite_tier import SqliteTier

COMMANDS = [
    *("import", "export", "warm", "stats", "invalidate", "check"),
    *("list", "show", "search"),
]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/answers.sqlite"


@pytest.fixture
def fill(tmp_path):
    def put(*answers):
        tier = SqliteTier(tmp_path / "answers.sqlite")
        tier.put(answers)
        tier.close()

    return put


def answer(number, *, namespace="acme", created_s=None):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number, 70_000],
        prompt_text=f"question {number}",
        namespace=namespace,
        answer_id=f"id{number}",
        tokenizer_key="k",
        created_s=created_s,
    )


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def refused(*arguments):
    """The one line of a ValueError, which the command `reprise` prints with exit status 2."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        typer.main.get_command(app).main([str(a) for a in arguments], standalone_mode=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_answers_survive_export_and_import(url, fill, tmp_path):
    originals = [answer(1), answer(2), answer(3, namespace="租户")]
    fill(*originals)
    assert "3 answers exported" in run("export", tmp_path / "a.jsonl", "--url", url)
    other = tmp_path / "other.sqlite"
    assert "3 answers imported" in run(
        "import", tmp_path / "a.jsonl", "--url", f"sqlite:///{other}"
    )
    tier = SqliteTier(other)
    assert sorted(tier.answers("acme"), key=lambda a: a.answer_id) == originals[:2]
    assert list(tier.answers("租户")) == originals[2:]
    tier.close()


def test_one_namespace_is_exported_to_standard_output(url, fill):
    fill(answer(1), answer(2, namespace="zeta"))
    [row] = run("export", "-", "--url", url, "--namespace", "zeta").splitlines()
    assert json.loads(row)["answer_id"] == "id2"
    assert json.loads(row)["response_token_ids"] == [2, 70_000]


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


def test_warm_embeds_what_is_not_embedded_yet(url, fill):
    fill(answer(1), answer(2))
    assert "2 of 2 answers embedded" in run("warm", "--url", url, "--model", "lexical")
    assert "0 of 2 answers embedded" in run("warm", "--url", url, "--model", "lexical")


def test_without_its_model_warm_leaves_embeddings_alone(url, fill, monkeypatch, caplog):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fill(answer(1))
    run("warm", "--url", url, "--model", "lexical")
    assert "no embedding model 'nowhere'" in refused("warm", "--url", url, "--model", "nowhere")
    assert caplog.text == ""
    assert "0 of 1 answer embedded" in run("warm", "--url", url, "--model", "lexical")


def test_a_mistyped_path_is_not_an_empty_cache(url, tmp_path):
    for command in ("stats", "check", "warm"):
        assert "there is no SQLite file" in refused(command, "--url", url)
    assert "there is no SQLite file" in refused("export", "-", "--url", url)
    assert "there is no SQLite file" in refused("invalidate", "--id", "x", "--url", url)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_cache_says_so(url, fill):
    fill()
    assert run("stats", "--url", url).startswith("no answers in sqlite://")


def test_without_a_command_the_help_is_shown():
    assert "invalidate" in run()


@pytest.mark.redis
def test_every_command_over_redis(redis_server, tmp_path):
    import redis

    url = redis_server.url
    rows = tmp_path / "a.jsonl"
    lines = [row_of(a) for a in (answer(1, created_s=1.0), answer(2), answer(3, namespace="z"))]
    rows.write_bytes(b"\n".join(lines))
    assert "3 answers imported" in run("import", rows, "--url", url)
    assert "3 of 3 answers embedded" in run("warm", "--url", url, "--model", "lexical")
    assert "0 of 3 answers embedded" in run("warm", "--url", url, "--model", "lexical")
    assert "acme" in run("stats", "--url", url)
    assert "3 answers exported" in run("export", tmp_path / "b.jsonl", "--url", url)
    exported = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert {row.pop("embedder") for row in exported} == {"lexical:512"}
    assert all(len(row.pop("embedding")) > 512 for row in exported)
    for line in map(json.loads, lines):
        del line["embedding"], line["embedder"]
        assert line in exported
    client = redis.Redis.from_url(url)
    [key] = client.keys("*:a:id3")
    client.set(key, b"damaged")
    assert "2 answers readable, 1 damaged" in run("check", "--url", url, status=1)
    client.close()
    assert "1 answer removed" in run("invalidate", "--older-than", "1h", "--url", url)
    assert "1 answer removed" in run("invalidate", "--prompt", "question 2", "--url", url)
    assert "no answers in redis://" in run("stats", "--url", url)


def test_stats_by_namespace(url, fill):
    fill(answer(1), answer(2), answer(3, namespace=""))
    output = run("stats", "--url", url)
    assert "acme" in output
    assert "(default)" in output


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        (["--id", "id1"], {"id2", "id3"}),
        (["--namespace", "acme"], {"id3"}),
        (["--prompt", " question 2 "], {"id1", "id3"}),
        (["--older-than", "1h"], {"id2", "id3"}),
        (["--older-than", "1h", "--namespace", "zeta"], {"id1", "id2", "id3"}),
    ],
)
def test_invalidate_removes_what_meets_all_conditions(url, fill, tmp_path, conditions, left):
    fill(answer(1, created_s=1.0), answer(2), answer(3, namespace="zeta"))
    assert re.match(
        rf"{3 - len(left)} answers? removed", run("invalidate", "--url", url, *conditions)
    )
    tier = SqliteTier(tmp_path / "answers.sqlite")
    assert {a.answer_id for name in tier.namespaces() for a in tier.answers(name)} == left
    tier.close()


def test_check_finds_damage(url, fill, tmp_path):
    fill(answer(1), answer(2))
    assert "2 answers readable, 0 damaged" in run("check", "--url", url)
    tier = SqliteTier(tmp_path / "answers.sqlite")
    tier._db.execute("update answers set record = x'52410100' where answer_id = 'id1'")
    tier._db.commit()
    tier.close()
    assert "1 answer readable, 1 damaged" in run("check", "--url", url, status=1)


def test_bad_input_is_one_line(url, fill, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt_token_ids": [1], "response_token_ids": [2]}\nnot json\n')
    assert "bad.jsonl, line 2" in refused("import", bad, "--url", url)
    assert "there is no SQLite file" in refused("check", "--url", url)
    assert "cannot read" in refused("import", tmp_path / "missing", "--url", url)
    fill()
    bad.write_text('{"prompt_token_ids": [-1], "response_token_ids": [2]}\n')
    assert "token ids must lie in" in refused("import", bad, "--url", url)
    assert "memory:// lives in a running engine" in refused("check", "--url", "memory://")
    assert "cache URL must be" in refused("check", "--url", "ftp://x")
    assert "redis: ConnectionError" in refused("check", "--url", "redis://:pw@127.0.0.1:1/0")
    assert "pw" not in refused("check", "--url", "redis://:pw@127.0.0.1:1/0")
    assert "needs --id" in refused("invalidate", "--url", url)
    assert "an age must look like" in refused("invalidate", "--url", url, "--older-than", "soon")
    assert "namespace must not contain" in refused("stats", "--url", url, "--namespace", "a@b")
    assert "no tokenizer at" in refused(
        "import", bad, "--url", url, "--tokenizer", tmp_path / "none"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--older-than", "-5s"], "an age must look like"),
        (["--older-than", "5"], "an age must look like"),
        (["--prompt", ""], "prompt must not be empty"),
        (["--prompt", "  "], "prompt must not be empty"),
        (["--id", ""], "answer_id must not be empty"),
        (["--tenant", ""], "tenant must not be empty"),
        (["--namespace", "acme", "--tenant", "acme"], "exclude each other"),
        (["--everything", "--id", "id1"], "no other condition"),
        (["--namespace", "a/b"], "must not contain"),
    ],
)
def test_a_condition_that_makes_no_sense_removes_nothing(url, fill, options, message):
    fill(answer(1), answer(2, namespace=""))
    assert message in refused("invalidate", "--url", url, *options)
    assert "2 answers readable" in run("check", "--url", url)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--older-than", "0s"], 0),
        (["--everything"], 0),
        (["--older-than", "1h"], 2),
        (["--namespace", ""], 2),  # the default one
        (["--prompt", "question 2"], 2),
        (["--prompt", " question 1 "], 1),
        (["--model-key", "none"], 3),
        (["--tenant", "acme"], 2),
        (["--tenant", "acm"], 3),
    ],
)
def test_each_condition_removes_what_it_says(url, fill, options, left):
    fill(
        answer(1),
        answer(2, namespace=""),
        msgspec.structs.replace(answer(1, created_s=1.0), namespace="zeta", answer_id="old"),
    )
    told = run("invalidate", "--url", url, *options)
    assert told.startswith(f"{3 - left} answer")
    assert f"{left} answer" in run("check", "--url", url)


def test_a_prompt_is_found_in_answers_without_text_by_their_tokens(url, fill, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"cancel": 1, "my": 2, "?": 3}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    fill(*(msgspec.structs.replace(answer(n), prompt_text="") for n in (1, 2)))
    told = run("invalidate", "--url", url, "--prompt", "cancel")
    assert told.splitlines() == [
        "0 answers removed",
        "2 answers without text not compared: name --tokenizer",
    ]
    by_tokens = ("--prompt", "cancel", "--tokenizer", tmp_path / "tokenizer.json")
    assert run("invalidate", "--url", url, *by_tokens).splitlines() == ["1 answer removed"]


def test_what_cannot_be_read_is_removed_where_its_namespace_says_enough(url, fill, tmp_path):
    fill(answer(1), answer(2))
    db = sqlite3.connect(tmp_path / "answers.sqlite")
    db.execute("update answers set record = x'00ff' where answer_id = 'id1'")
    db.commit()
    db.close()
    assert "1 damaged not compared" in run("invalidate", "--url", url, "--older-than", "1h")
    assert run("invalidate", "--url", url, "--namespace", "acme").startswith("2 answers removed")
    assert "0 answers readable, 0 damaged" in run("check", "--url", url)


@pytest.mark.redis
def test_what_is_embedded_later_expires_as_before(redis_server):
    import redis

    tier = RedisTier(redis_server.url, ttl_s=500.0)
    tier.put([answer(1), answer(2, created_s=time.time() - 400.0)])
    client = redis.Redis.from_url(redis_server.url)
    run("warm", "--url", redis_server.url, "--model", "lexical")
    left_s = {key[-2:]: client.ttl(key) for key in client.keys("*:a:*")}
    assert 490 <= left_s[b"d1"] <= 500
    assert 90 <= left_s[b"d2"] <= 100
    client.close()
    tier.close()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    assert f"Example: reprise cache {command}" in " ".join(run(command, "--help").split())


def test_all_commands_are_there():
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names == set(COMMANDS)


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
    assert "1 rows without a question or an answer left out" in output
    first, second = (9, 7, 8, 1, 3, 2), (9, 7, 8, 1, 3, 2, 4, 1, 5, 2)
    assert imported(tmp_path) == {(first, (4,)), (second, (6,))}


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


def test_an_export_is_for_its_owner_alone(url, fill, tmp_path):
    import os

    fill(answer(1))
    (tmp_path / "old.jsonl").touch(0o644)
    before = os.umask(0)
    try:
        for name in ("old.jsonl", "new.jsonl"):
            run("export", tmp_path / name, "--url", url)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


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
