"""What Redis URLs say, on real servers, and that their passwords are never shown."""

import json
import logging
import subprocess
import sys

import pytest
import redis

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.redis_url import parse_redis_url
from reprise.retrieval.api.tier_url import check_url, hide_secrets, redact
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.tiers.redis.redis_tier import RedisTier

SECRET = "S3CR3T-w0rd"
EXPECTS_ENCODED = "percent-encoded"


def answer(number, namespace=""):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * 3,
        prompt_text=f"question {number}",
        namespace=namespace,
        answer_id=f"id{number}",
    )


@pytest.mark.parametrize(
    ("url", "for_redis_py", "is_cluster"),
    [
        ("redis://h:1/0", "redis://h:1/0", False),
        ("redis://h:1/3?cluster=0", "redis://h:1/3", False),
        ("redis://h:1/0?cluster=1", "redis://h:1", True),
        ("redis://h:1?cluster=1", "redis://h:1", True),
        ("redis://h:1/?cluster=1&password=a%26b", "redis://h:1?password=a%26b", True),
        ("redis://h/0?password=ab&cluster=1&username=u", "redis://h?password=ab&username=u", True),
        (
            "rediss://u:p%40ss@h:1/0?ssl_cert_reqs=none&cluster=1",
            "rediss://u:p%40ss@h:1?ssl_cert_reqs=none",
            True,
        ),
        ("redis://h?cluster=1&db=0", "redis://h", True),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0", False),
        ("redis:///0", "redis:///0", False),
        ("unix://u:pw@/run/redis.sock?db=2", "unix://u:pw@/run/redis.sock?db=2", False),
    ],
)
def test_urls_are_read_with_their_options_in_any_order(url, for_redis_py, is_cluster):
    parsed = parse_redis_url(url)
    assert (parsed.url, parsed.is_cluster) == (for_redis_py, is_cluster)
    assert RetrievalConfig(url=url).url == url


@pytest.mark.parametrize(
    ("url", "for_redis_py", "sentinels"),
    [
        ("redis://s1:1/0?sentinel=main", "redis://s1:1/0", (("s1", 1),)),
        ("redis://u:p@s1?db=2&sentinel=main", "redis://u:p@s1?db=2", (("s1", 26379),)),
        (
            "rediss://s1:1?sentinels=s2,[::1]:3&sentinel=main",
            "rediss://s1:1",
            (("s1", 1), ("s2", 26379), ("::1", 3)),
        ),
    ],
)
def test_sentinels_are_asked_for_the_master_of_a_name(url, for_redis_py, sentinels):
    parsed = parse_redis_url(url)
    assert (parsed.url, parsed.service, parsed.sentinels) == (for_redis_py, "main", sentinels)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h?sentinel=", "option 'sentinel' must be something"),
        ("redis://h?sentinels=a:1", "option 'sentinels' needs sentinel=NAME of the master"),
        ("redis://h?sentinel=m&sentinels=a:b", "must be host:port,host:port, got 'a:b'"),
        ("redis://h?sentinel=m&sentinels=a,", "must be host:port,host:port"),
        ("redis://h?sentinel=m&cluster=1", "option 'sentinel' does not go with cluster=1"),
        ("unix:///x?sentinel=m", "option 'sentinel' does not go with unix://"),
        ("redi://x", "cache URL must be memory://.* got 'redi://x'"),
        ("redis://h?cluster=10", "option 'cluster' must be 0 or 1, got '10'"),
        ("redis://h?cluster=true", "option 'cluster' must be 0 or 1, got 'true'"),
        ("redis://h/2?cluster=1", "a cluster has database 0 only, got 2"),
        ("redis://h?db=2&cluster=1", "a cluster has database 0 only, got 2"),
        ("unix:///x?cluster=1", "must be redis:// or rediss://, got unix://"),
        ("redis://h?colour=red", "unknown option 'colour'; expected one of cluster, "),
        ("redis://h?db=1&db=2", "option 'db' is given twice"),
        ("redis://h?protocol=three", "option 'protocol' must be a whole number, got 'three'"),
        ("redis://h?socket_timeout=soon", "must be a number of seconds, got 'soon'"),
        ("redis://h?socket_keepalive=perhaps", "must be one of 0, 1, true"),
        ("rediss://h?ssl_cert_reqs=never", "must be none, optional or required"),
        ("redis://h?ssl_cert_reqs=none", "option 'ssl_cert_reqs' needs rediss://"),
        ("redis://h?password=", "option 'password' must be something, got \\*\\*\\*"),
        ("redis://h/database", EXPECTS_ENCODED),
        ("redis://h:port/0", EXPECTS_ENCODED),
        ("redis://h?cluster", EXPECTS_ENCODED),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(url, message):
    for check in (check_url, lambda url: RetrievalConfig(url=url)):
        with pytest.raises(ValueError, match=message):
            check(url)


UNREADABLE = [
    f"redis:/u:{SECRET}@h:6379/0",
    f"u:{SECRET}@h:6379",
    f"rediss://app:p@{SECRET}/w:rd#1@host:1/0",
    f"redis://:{SECRET}/x@host/0",
    f"redis://:12/{SECRET}@host/0",
    f"redis://:12?{SECRET}@host",
    f"redis://:12#{SECRET}@host/0",
    f"redis://u:{SECRET}@{SECRET}@host/0",
    f"redis://h/0?password=a&{SECRET}=b",
    f"redi://app:{SECRET}@host/0",
]
READABLE = [
    f"redis://app:{SECRET}@127.0.0.1:1/0",
    f"redis://127.0.0.1:1/0?username=app&password={SECRET}",
    f"redis://127.0.0.1:1/0?password={SECRET}&cluster=1",
    f"redis://{SECRET}@127.0.0.1:1/0",
    f"unix://app:{SECRET}@/nowhere/redis.sock",
    f"rediss://127.0.0.1:1/0?ssl_password={SECRET}",
]


@pytest.mark.parametrize("url", UNREADABLE)
def test_a_refused_url_keeps_its_password(url):
    assert SECRET not in redact(url)
    assert "***" in redact(url)
    with pytest.raises(ValueError, match=r"\*\*\*|after a password") as caught:
        check_url(url)
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="url") as caught:
        RetrievalConfig(url=url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", READABLE)
def test_passwords_are_shown_nowhere(url):
    assert SECRET not in redact(url)
    assert "***" in redact(url)
    text = f"cannot reach {url}, nor log in with {SECRET!r}"
    assert SECRET not in hide_secrets(text, url)
    assert SECRET not in repr(RetrievalConfig(url=url))
    assert "p@ss" not in hide_secrets("wrong: p@ss", "redis://u:p%40ss@h")


# One process for all URLs: it prints what it has to say of each, and logs as it likes.
COMMANDS = """
import contextlib, io, json, os, sys
from reprise.engine_ext.core.config import load_config
from reprise.retrieval.cli.cache_cli import app

def run():
    try:
        print(load_config())
    except ValueError as error:
        print(error)
    for command in (["stats"], ["check"], ["export", "-"]):
        try:
            app(command, standalone_mode=False)
        except ValueError as error:
            print(error, file=sys.stderr)

said = {}
for url in sys.argv[1:]:
    os.environ["REPRISE_RETRIEVAL__URL"] = url
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        run()
    said[url] = [out.getvalue(), err.getvalue()]
with open("said.json", "w") as file:
    json.dump(said, file)
"""


def test_no_command_prints_a_password(tmp_path):
    urls = [*READABLE, *UNREADABLE]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *urls], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert list(said) == urls
    for url, (out, err) in said.items():
        assert out, url
        assert err, url
        assert SECRET not in out + err, url
        assert "Traceback" not in err, url


@pytest.mark.redis
@pytest.mark.parametrize("options", ["", "&cluster=1"])
def test_a_failing_server_is_logged_without_the_password(
    start_redis, caplog, wait_until, monkeypatch, options
):
    caplog.set_level(logging.DEBUG, logger="reprise")
    server = start_redis("--requirepass", "another")
    url = f"{server.url}?password={SECRET}{options}"

    def tells(*_, **__):
        raise redis.RedisError(f"no way in with {SECRET} at {url}")

    monkeypatch.setattr(redis.Redis, "pipeline", tells)
    config = RetrievalConfig(url=url, embedding_model="lexical", poll_s=0.05, clauses=False)
    retriever = LocalRetriever(config, embedder=Embedder("lexical"))
    retriever.store(answer(1))
    # Nothing is written while what others had forgotten cannot be read.
    wait_until(lambda: "cannot read" in retriever.health().detail)
    told = f"{caplog.text} {retriever.health()} {retriever.stats()}"
    retriever.close()
    assert "fails, going on without it" in caplog.text
    assert SECRET not in told


@pytest.mark.redis
def test_a_cluster_that_is_not_there_costs_hits_only(start_redis, caplog, wait_until):
    server = start_redis("--cluster-enabled", "yes")
    port = server.port
    server.kill()
    url = f"redis://127.0.0.1:{port}/0?cluster=1"
    config = RetrievalConfig(url=url, embedding_model="lexical", poll_s=0.05, clauses=False)
    retriever = LocalRetriever(config, embedder=Embedder("lexical"))
    retriever.store(answer(1))
    wait_until(lambda: "cannot read" in retriever.health().detail)
    assert retriever.health().state == "degraded"
    assert len([r for r in caplog.records if "fails, going on without it" in r.message]) == 1
    assert not [r for r in caplog.records if r.exc_info]
    assert retriever.stats().unwritten == 0
    server.start()  # on the same port, and now with its slots
    node = redis.Redis.from_url(server.url)
    node.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    node.close()
    wait_until(lambda: retriever.health().state == "ready")
    assert retriever.flush(60)
    tier = RedisTier(url, timeout_s=20.0)
    assert [a.answer_id for a in tier.answers("")] == ["id1"]
    tier.close()
    retriever.close()


@pytest.mark.redis
@pytest.mark.slow
def test_a_cluster_of_three_with_a_password(start_redis, wait_until):
    """The options after `cluster=1` count, the password above all."""
    password = ("--requirepass", SECRET, "--masterauth", SECRET)
    servers = [start_redis("--cluster-enabled", "yes", *password) for _ in range(3)]
    nodes = [redis.Redis(port=server.port, password=SECRET) for server in servers]
    for number, node in enumerate(nodes):
        node.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        slots = range(16384 * number // 3, 16384 * (number + 1) // 3)
        node.execute_command("CLUSTER", "ADDSLOTS", *slots)
    for node in nodes:
        wait_until(lambda n=node: b"cluster_state:ok" in n.execute_command("CLUSTER", "INFO"))
        node.close()
    originals = [answer(n, namespace=f"tenant{n}") for n in range(12)]
    for options in (f"cluster=1&password={SECRET}", f"password={SECRET}&cluster=1&protocol=3"):
        tier = RedisTier(f"redis://127.0.0.1:{servers[1].port}/0?{options}", timeout_s=20.0)
        tier.put(originals)
        assert len(tier.namespaces()) == 12
        assert [a.answer_id for a in tier.answers("tenant7")] == ["id7"]
        assert tier.remove("tenant3", ["id3"]) == 1
        tier.close()


@pytest.mark.parametrize("url", READABLE[:3])
def test_the_retrieval_process_and_the_doctor_show_no_password(
    url, capfd, caplog, monkeypatch, wait_until
):
    from reprise.engine_ext.cli.doctor import check_redis, check_settings
    from reprise.retrieval.service.process_retriever import ProcessRetriever

    retriever = ProcessRetriever(RetrievalConfig(url=url, embedding_model="lexical", clauses=False))
    try:
        retriever.store(answer(1))
        wait_until(lambda: "cannot read" in retriever.health().detail)
        told = f"{retriever.health()} {retriever.stats()} {retriever._config}"
    finally:
        retriever.close()
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", url)
    told += str([*check_settings(), *check_redis()])
    captured = capfd.readouterr()
    assert "fails, going on without it" in captured.err
    assert "***" in told
    assert SECRET not in captured.out + captured.err + caplog.text + told
