"""`reprise cache` as a user runs it, over SQLite; Redis differs only in its URL."""

import json
import os
import sqlite3
import time
from contextlib import closing

import msgspec
import pytest

from reprise.eval.live.milvus_server import is_milvus_installed
from reprise.eval.live.server_process import free_port
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.cli.answer_rows import row_of
from reprise.retrieval.cli.cache_cli import app
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.tier import TierError
from reprise.tests.retrieval.cli.cache_command import (
    answer,
    refused,
    run,
)

COMMANDS = [
    *("import", "export", "warm", "stats", "invalidate", "check"),
    *("list", "show", "search"),
]


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


@pytest.mark.parametrize("ending", ["", ".index"])
def test_an_export_leaves_the_cache_as_it_is(url, fill, tmp_path, ending):
    fill(answer(1))
    (tmp_path / "answers.sqlite.index").touch()
    own = tmp_path / f"answers.sqlite{ending}"
    link = tmp_path / "link"
    link.symlink_to(own)
    for each in (own, link):
        assert "it belongs to the cache itself" in refused("export", each, "--url", url)
    assert "1 answer readable, 0 damaged" in run("check", "--url", url)
    missing = tmp_path / "missing" / "a.jsonl"
    assert f"there is no folder {missing.parent}" in refused("export", missing, "--url", url)


def test_one_namespace_is_exported_to_standard_output(url, fill):
    fill(answer(1), answer(2, namespace="zeta"))
    [row] = run("export", "-", "--url", url, "--namespace", "zeta").splitlines()
    assert json.loads(row)["answer_id"] == "id2"
    assert json.loads(row)["response_token_ids"] == [2, 70_000]


def test_warm_embeds_what_is_not_embedded_yet(url, fill):
    fill(answer(1), answer(2))
    assert "2 of 2 answers embedded" in run("warm", "--url", url, "--embedding-model", "lexical")
    again = run("warm", "--url", url, "--embedding-model", "lexical")
    assert "0 of 2 answers embedded" in again
    assert again.endswith("; 2 had been already\n")


def test_without_its_model_warm_leaves_embeddings_alone(url, fill, monkeypatch, caplog):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fill(answer(1))
    run("warm", "--url", url, "--embedding-model", "lexical")
    monkeypatch.setenv("REPRISE_RETRIEVAL__EMBEDDING_MODEL", "nowhere")  # as servers' are named
    assert "no embedding model 'nowhere'" in refused("warm", "--url", url)
    assert caplog.text == ""
    assert "0 of 1 answer embedded" in run("warm", "--url", url, "--embedding-model", "lexical")


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
    assert "3 of 3 answers embedded" in run("warm", "--url", url, "--embedding-model", "lexical")
    assert "0 of 3 answers embedded" in run("warm", "--url", url, "--embedding-model", "lexical")
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


def test_check_finds_damage(url, fill, tmp_path):
    fill(answer(1), answer(2))
    assert "2 answers readable, 0 damaged" in run("check", "--url", url)
    tier = SqliteTier(tmp_path / "answers.sqlite")
    tier._db.execute("update answers set record = x'52410100' where answer_id = 'id1'")
    tier._db.commit()
    tier.close()
    assert "1 answer readable, 1 damaged" in run("check", "--url", url, status=1)


@pytest.mark.parametrize(("what", "readable"), [("index", 2), ("table", 0)])
def test_check_finds_a_damaged_page_of_the_file(url, fill, tmp_path, what, readable):
    """Answers may be readable without what is damaged."""
    path = tmp_path / "answers.sqlite"
    fill(answer(1), answer(2))
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma journal_mode=delete")
        [page] = db.execute(
            "select rootpage from sqlite_master where type = ? and tbl_name = 'answers'"
            " and sql is not null",
            (what,),
        ).fetchone()
        [size] = db.execute("pragma page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    output = run("check", "--url", url, status=1)
    told, advice = output.splitlines()
    assert told.startswith(f"{readable} answers readable, 0 damaged")
    assert advice.endswith(": export what is readable, and import it into another file")


def test_a_file_that_cannot_be_checked_now_is_not_called_damaged(url, fill, monkeypatch):
    fill(answer(1))

    def busy(_: SqliteTier) -> None:
        raise TierError("sqlite: database is locked")

    monkeypatch.setattr(SqliteTier, "check", busy)
    assert "database is locked" in refused("check", "--url", url)


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


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def any_url(request):
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url
    return request.getfixturevalue("url")


def test_what_leaves_or_changes_while_it_is_embedded_is_not_written_as_it_was(any_url, monkeypatch):
    tier = open_tier(any_url)
    tier.put([answer(number) for number in range(4)])
    encode = Embedder.encode

    def meanwhile(self, *arguments):
        tier.forget(Invalidation.create(answer_id="id1"))
        tier.put([msgspec.structs.replace(answer(2), prompt_text="another question")])
        return encode(self, *arguments)

    monkeypatch.setattr(Embedder, "encode", meanwhile)
    told = run("warm", "--url", any_url, "--embedding-model", "lexical")
    assert "2 of 4 answers embedded" in told
    held = {each.answer_id: each for each in tier.answers("acme")}
    assert {name: bool(each.embedder) for name, each in held.items()} == {
        "id0": True,
        "id2": False,
        "id3": True,
    }
    assert held["id2"].prompt_text == "another question"
    tier.close()


def test_what_is_replaced_is_charged_for_and_what_is_gone_stays_away(any_url):
    tier = open_tier(any_url)
    kept, gone, other = answer(0), answer(1), answer(2)
    tier.put([kept, gone, other])
    tier.remove("acme", ["id1"])
    longer = [msgspec.structs.replace(each, embedding=os.urandom(9000)) for each in (kept, gone)]
    assert tier.replace(longer) == 1
    assert sorted(tier.answers("acme"), key=lambda each: each.answer_id) == [longer[0], other]
    for number in (0, 2):
        assert tier.namespaces() == ["acme"]
        assert tier.remove("acme", [f"id{number}"]) == 1
    assert tier.namespaces() == []
    tier.close()


@pytest.mark.redis
def test_what_is_embedded_later_expires_as_before(redis_server):
    import redis

    tier = RedisTier(redis_server.url, ttl_s=500.0)
    tier.put([answer(1), answer(2, created_s=time.time() - 400.0)])
    client = redis.Redis.from_url(redis_server.url)
    run("warm", "--url", redis_server.url, "--embedding-model", "lexical")
    left_s = {key[-2:]: client.ttl(key) for key in client.keys("*:a:*")}
    assert 440 <= left_s[b"d1"] <= 500
    assert 40 <= left_s[b"d2"] <= 100
    client.close()
    tier.close()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    assert f"Example: reprise cache {command}" in " ".join(run(command, "--help").split())


def test_all_commands_are_there():
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    # `verify` needs an engine: where that is loaded it is added.
    assert names - {"verify"} == set(COMMANDS)


def test_an_export_is_for_its_owner_alone(url, fill, tmp_path):
    fill(answer(1))
    (tmp_path / "old.jsonl").touch(0o644)
    before = os.umask(0)
    try:
        for name in ("old.jsonl", "new.jsonl"):
            run("export", tmp_path / name, "--url", url)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("before", ["kept", None])
def test_nothing_to_export_leaves_the_file_as_it_is(url, fill, tmp_path, before):
    exported = tmp_path / "a.jsonl"
    if before is not None:
        exported.write_text(before)
    fill()
    assert "no answers to export in sqlite://" in refused("export", exported, "--url", url)
    fill(answer(1))
    message = refused("export", exported, "--url", url, "--namespace", "acmee")
    assert "no answers in the namespace 'acmee'" in message
    assert (exported.read_text() if exported.exists() else None) == before


def test_a_namespace_without_answers_is_not_an_empty_cache(url, fill):
    fill(answer(1))
    given = ("--url", url, "--namespace", "acmee")
    for command in (["stats"], ["list"], ["warm"], ["show", "id1"], ["search", "question"]):
        assert "no answers in the namespace 'acmee'" in refused(*command, *given)
    told = run("invalidate", *given)  # replicas may hold it in memory: they are told
    assert told.startswith("0 answers removed\nno answers in the namespace 'acmee'")
    assert "no answers in the namespace 'zeta'" in run(
        "invalidate", "--url", url, "--tenant", "zeta"
    )
    assert "no answers" not in run("invalidate", "--url", url, "--namespace", "acme", "--id", "x")


@pytest.mark.slow
@pytest.mark.skipif(not is_milvus_installed(), reason="no Milvus: pip install 'reprise[milvus]'")
def test_an_index_in_milvus_is_filled_and_rid_of_what_is_removed(url, fill, tmp_path):
    import numpy as np

    from reprise.retrieval.api.search_url import parse_search
    from reprise.retrieval.remote.milvus_index import MilvusIndex
    from reprise.retrieval.search.embedding import Embedder

    fill(answer(1), answer(2), answer(2, namespace="other"))
    search = f"milvus://{tmp_path}/index.db"
    options = ("--url", url, "--search", search)
    assert "3 answers in the search index" in run("warm", *options, "--embedding-model", "lexical")
    assert "1 answer removed" in run("invalidate", *options, "--namespace", "acme", "--id", "id2")
    embedder = Embedder("lexical")
    index = MilvusIndex(
        parse_search(search),
        tokenizer_key="k",
        embedder=embedder.identity,
        dim=embedder.dim,
        timeout_s=30.0,
    )
    index.open()
    vector = np.asarray(embedder.encode(["question 2"], [""]), np.float32)
    assert [i for i, _ in index.search("acme", vector, 8)[0]] == ["id1"]
    assert [i for i, _ in index.search("other", vector, 8)[0]] == ["id2"]
    index.close()
    nowhere = f"milvus://127.0.0.1:{free_port()}"
    message = refused("invalidate", "--url", url, "--search", nowhere, "--id", "id1")
    assert "removed from the tier, but their vectors are still in the search index" in message


def test_an_export_that_fails_leaves_the_last_one_as_it_is(url, fill, tmp_path, monkeypatch):
    fill(answer(1), answer(2))
    exported, link = tmp_path / "a.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(exported)
    run("export", link, "--url", url)
    before = exported.read_bytes()
    answers = SqliteTier.answers

    def fail_after_one(*arguments):
        yield next(answers(*arguments))
        raise TierError("injected")

    monkeypatch.setattr(SqliteTier, "answers", fail_after_one)
    assert "injected" in refused("export", exported, "--url", url)
    assert exported.read_bytes() == before
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == ["a.jsonl", "link.jsonl"]
