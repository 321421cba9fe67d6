"""One way to forget: whatever removes an answer, every store and every replica lets go of it."""

import contextlib
import os
import signal
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.api.tier_url import snapshot_path
from reprise.retrieval.cli.cache_cli import app
from reprise.retrieval.host.owner_lock import owner_prefix
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.retrieval.service.retrieval_client import RetrievalClient

# What one person said and was told; no other answer holds these bytes.
SECRET_PROMPT = "my neighbour Xaverius Quendelmann owes me 4711"
SECRET_REPLY = "then ask Xaverius Quendelmann to pay 4711"
PERSON, OTHER = "key-a1.salt-person", "key-a1.salt-other"
WITHIN_S = 1.0


def ids_of(text):
    """Token ids that are found again in any store: one for each character, and far from text."""
    return [1000 + ord(character) for character in text]


def decode(token_ids):
    return "".join(chr(token_id - 1000) for token_id in token_ids)


def answer(prompt, reply="yes", *, namespace=PERSON, created_s=None):
    return Answer.create(
        prompt_token_ids=ids_of(prompt),
        response_token_ids=ids_of(reply),
        namespace=namespace,
        response_text=reply,
        created_s=created_s,
    )


SECRET = answer(SECRET_PROMPT, SECRET_REPLY)
NEEDLES = [
    SECRET_PROMPT.encode(),
    SECRET_REPLY.encode(),
    *(
        np.array(ids_of(text), dtype=dtype).tobytes()
        for text in (SECRET_PROMPT[:20], SECRET_REPLY[:20])
        for dtype in ("<i4", "<u2")
    ),
]


def holds_secret(data):
    return any(needle in data for needle in NEEDLES)


@pytest.fixture(autouse=True)
def _uncompressed(monkeypatch):
    """So that what is looked for lies in a record as it is."""
    monkeypatch.setattr("reprise.retrieval.tiers.record._COMPRESS_FROM_BYTES", 1 << 30)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def url(request, tmp_path):
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url
    return f"sqlite:///{tmp_path}/answers.sqlite"


@pytest.fixture
def make_retriever():
    made = []

    def make(url, **options):
        config = RetrievalConfig(
            url=url, embedding_model="lexical", clauses=False, poll_s=0.05, **options
        )
        made.append(LocalRetriever(config, embedder=Embedder("lexical"), decode=decode))
        assert made[-1].wait_until_warm(60)
        return made[-1]

    yield make
    for retriever in made:
        retriever.close()


def invalidate(url, *arguments):
    result = CliRunner().invoke(
        app, ["invalidate", "--url", url, *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0
    return int(result.output.split()[0])


def tier_bytes(url):
    """All bytes that a tier has on disk or in Redis, keys and values."""
    if url.startswith("redis"):
        import redis

        client = redis.Redis.from_url(url)
        dumped = []
        for key in client.keys("*"):
            kind = client.type(key)
            if kind == b"string":
                dumped += [key, client.get(key)]
            elif kind == b"hash":
                dumped += [key, *(part for pair in client.hgetall(key).items() for part in pair)]
            elif kind == b"zset":
                dumped += [key, *client.zrange(key, 0, -1)]
            elif kind == b"stream":
                entries = client.xrange(key)
                dumped += [key, repr(entries).encode()]
            elif kind != b"none":  # it expired since the keys were listed
                raise AssertionError(f"a key of an unknown kind: {kind}")
        client.close()
        return b"\n".join(dumped)
    folder = Path(url.removeprefix("sqlite://")).parent
    read = []
    for file in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # what is written under another name first
            read += [file.read_bytes()] if file.is_file() else []
    return b"\n".join(read)


FILTERS = {
    "namespace": ["--namespace", PERSON],
    "tenant": ["--tenant", PERSON],
    "id": ["--id", SECRET.answer_id],
    "prompt": ["--prompt", SECRET_PROMPT],
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_person_is_forgotten_everywhere_and_others_are_not(url, make_retriever, wait_until, name):
    first, second = make_retriever(url), make_retriever(url)
    first.store(SECRET)
    others = [answer(f"question {n}", f"reply {n}", namespace=OTHER) for n in range(40)]
    for other in others:
        first.store(other)
    assert first.flush(60)
    wait_until(lambda: second.stats().answers == 41)
    assert second.flush(60)
    assert {u.answer_id for u in second.updates()} >= {SECRET.answer_id}
    assert holds_secret(tier_bytes(url))
    assert invalidate(url, *FILTERS[name]) == 1
    began_s = time.monotonic()
    for retriever in (first, second):
        wait_until(lambda r=retriever: r.answer(PERSON, SECRET.answer_id) is None)
        assert time.monotonic() - began_s < WITHIN_S + 14.0  # and what a busy machine adds
    [left] = [u for u in second.updates() if not u.added]
    assert (left.namespace, left.answer_id) == (PERSON, SECRET.answer_id)
    for retriever in (first, second):
        assert retriever.stats().answers == 40
        assert near(retriever, SECRET_PROMPT) == []
        assert len(near(retriever, "question 7", namespace=OTHER)) > 0
    assert not holds_secret(tier_bytes(url))
    tier = open_tier(url, timeout_s=20.0)
    assert {a.answer_id for a in tier.answers(OTHER)} == {a.answer_id for a in others}
    tier.close()


def near(retriever, text, *, namespace=PERSON):
    retriever.submit("asked", namespace=namespace, text=text)
    assert retriever.flush(60)
    return retriever.poll("asked")


def test_what_was_removed_does_not_come_back_after_a_restart(url, make_retriever, tmp_path):
    snapshot = str(tmp_path / "index")
    first = make_retriever(url, index_snapshot=snapshot)
    first.store(SECRET)
    first.store(answer("another question"))
    assert first.flush(60)
    first.close()
    path = snapshot_path(url, snapshot)
    vector = Embedder("lexical").encode([SECRET_PROMPT])[0].astype("<f2").astype("<f4")
    assert vector.tobytes() in path.read_bytes()
    again = make_retriever(url, index_snapshot=snapshot)
    assert again.stats().answers == 2
    assert again.forget(Invalidation.create(prompt=SECRET_PROMPT), timeout_s=10).done
    deadline_s = time.monotonic() + 20
    while vector.tobytes() in path.read_bytes():
        assert time.monotonic() < deadline_s, "the snapshot still holds the vector"
        time.sleep(0.05)
    os.sync()
    again.close()
    last = make_retriever(url, index_snapshot=snapshot)
    assert last.stats().answers == 1
    assert SECRET.answer_id not in {found.answer_id for found in near(last, SECRET_PROMPT)}
    assert not holds_secret(path.read_bytes())


@pytest.mark.redis
@pytest.mark.parametrize("outage", ["cut", "trimmed"])
def test_what_was_removed_during_an_outage_is_removed_after_it(
    redis_server, make_proxy, make_retriever, wait_until, outage
):
    proxy = make_proxy(redis_server.port)
    away = make_retriever(f"redis://127.0.0.1:{proxy.port}/0", stream_length=100)
    here = make_retriever(redis_server.url, stream_length=100)
    here.store(SECRET)
    here.store(answer("kept", namespace=OTHER))
    assert here.flush(60)
    wait_until(lambda: away.stats().answers == 2)
    proxy.cut_after = 1
    wait_until(lambda: "read" in away.health().detail)
    # What it is told meanwhile waits, and what waits and is meant is not written afterwards.
    away.store(answer("a late word of the person"))
    away.store(answer("a late word of another", namespace=OTHER))
    assert invalidate(redis_server.url, "--namespace", PERSON) == 1
    if outage == "trimmed":
        for number in range(400):
            here.store(answer(f"noise {number}", namespace=OTHER))
        assert here.flush(120)
    assert away.answer(PERSON, SECRET.answer_id) is not None
    proxy.cut_after = None
    began_s = time.monotonic()
    wait_until(lambda: away.answer(PERSON, SECRET.answer_id) is None)
    assert time.monotonic() - began_s < 30.0
    assert away.flush(120)
    tier = open_tier(redis_server.url, timeout_s=20.0)
    assert list(tier.answers(PERSON)) == []
    texts = {decode(a.prompt_token_ids) for a in tier.answers(OTHER)}
    assert {"kept", "a late word of another"} <= texts
    tier.close()


@pytest.mark.redis
def test_a_reader_behind_a_trimmed_stream_is_told_to_compare(redis_server):
    """More changes between two looks than the stream keeps: without an outage."""
    from reprise.retrieval.tiers.redis.redis_tier import RedisTier

    reader = RedisTier(redis_server.url, timeout_s=20.0, stream_length=100)
    writer = RedisTier(redis_server.url, timeout_s=20.0, stream_length=100)
    writer.put([answer("first")])
    assert reader.changes().complete
    writer.put([answer(f"question {number}") for number in range(500)])
    assert not reader.changes().complete
    reader.close()
    writer.close()


def test_sqlite_tells_other_processes_what_was_done(tmp_path):
    first, second = (open_tier(f"sqlite:///{tmp_path}/a.sqlite") for _ in range(2))
    assert second.changes().added == ()
    first.put([SECRET])
    assert [a.answer_id for a in second.changes().added] == [SECRET.answer_id]
    assert first.changes() == first.changes()  # its own doings are no news
    first.remove(PERSON, [SECRET.answer_id])
    assert second.changes().removed == ((PERSON, SECRET.answer_id),)
    position = second.invalidations(None).position
    first.forget(Invalidation.create(everything=True))
    page = second.invalidations(position)
    assert [each.everything for each in page.invalidations] == [True]
    assert page.complete
    assert second.invalidations(page.position).invalidations == ()
    assert not second.invalidations("77").complete
    for tier in (first, second):
        tier.close()


def test_expired_answers_leave_every_store(url, make_retriever, wait_until, advance_clock):
    ttl_s = 15.0 if url.startswith("redis") else 3600.0
    retriever = make_retriever(url, ttl_s=ttl_s)
    retriever.store(fresh := answer(SECRET_PROMPT, SECRET_REPLY))
    assert retriever.flush(60)
    assert holds_secret(tier_bytes(url))
    assert [u.added for u in retriever.updates()] == [True]
    if not url.startswith("redis"):  # which has a clock of its own
        advance_clock(ttl_s)
    left_s = fresh.created_s + ttl_s - time.time()
    wait_until(lambda: retriever.stats().answers == 0)
    wait_until(lambda: not holds_secret(tier_bytes(url)), timeout_s=max(0.0, left_s) + 60.0)
    assert [u.added for u in retriever.updates()] == [False]
    assert near(retriever, SECRET_PROMPT) == []


def shared_memory():
    blocks = Path("/dev/shm").glob(owner_prefix(os.getpid()) + "*")
    return b"".join(block.read_bytes() for block in blocks)


@pytest.fixture
def front_end(tmp_path, wait_until):
    config = RetrievalConfig(
        url=f"sqlite:///{tmp_path}/answers.sqlite", embedding_model="lexical", clauses=False
    )
    owner = ProcessRetriever(config, for_front_end=True)
    wait_until(lambda: owner.health().state == "ready")
    yield owner
    owner.close()


def test_shared_memory_and_clients_forget_too(front_end, wait_until):
    worker = RetrievalClient(front_end.address)
    sibling = RetrievalClient(front_end.address, wants_updates=False, wants_forgotten=True)
    wait_until(lambda: worker.health().state == sibling.health().state == "ready")
    # This process has no tokenizer.
    secret = msgspec.structs.replace(SECRET, prompt_text=SECRET_PROMPT)
    front_end.store(secret)
    assert front_end.flush(60)
    front_end.submit("asked", namespace=PERSON, text=SECRET_PROMPT)
    front_end.store(answer("another", namespace=OTHER))
    assert front_end.flush(60)
    wait_until(lambda: worker.poll("asked") is not None)
    assert holds_secret(shared_memory())
    wait_until(lambda: [u.added for u in worker.updates() if u.answer_id == secret.answer_id])
    done = front_end.forget(Invalidation.create(namespace=PERSON), timeout_s=10)
    assert done.removed == ((PERSON, secret.answer_id),)
    assert done.done
    wait_until(lambda: not holds_secret(shared_memory()))
    assert worker.poll("asked") in ([], None)
    wait_until(lambda: [u.answer_id for u in worker.updates() if not u.added])
    told = []
    wait_until(lambda: told.extend(sibling.forgotten()) or any(f.invalidations for f in told))
    wait_until(lambda: front_end.stats().answers == 1)
    # The front end's own client takes no updates, so none of them waits there for ever.
    assert front_end.updates() == []
    for client in (worker, sibling):
        client.close()


def test_what_is_forgotten_while_the_process_is_away_is_told_when_it_is_back(
    front_end, may_start, wait_until, tmp_path
):
    front_end.store(SECRET)
    assert front_end.flush(60)
    wait_until(lambda: front_end.forgotten() or front_end._position is not None)
    killed = front_end.pid
    may_start.clear()
    os.kill(killed, signal.SIGKILL)
    # Two that the process does not hear of: one through the tier, one through its client.
    assert invalidate(f"sqlite:///{tmp_path}/answers.sqlite", "--prompt", "nobody asked this") == 0
    wait_until(lambda: front_end.health().detail == "no retrieval process")
    assert not front_end.forget(Invalidation.create(namespace=PERSON), timeout_s=0.1).done
    assert front_end.num_unconfirmed == 1
    may_start.set()
    wait_until(lambda: front_end.pid not in (None, killed))
    told = []
    wait_until(
        lambda: (
            told.extend(each for f in front_end.forgotten() for each in f.invalidations)
            or any(each.prompt_digest for each in told)
        )
    )
    wait_until(lambda: front_end.num_unconfirmed == 0)
    tier = open_tier(f"sqlite:///{tmp_path}/answers.sqlite")
    assert list(tier.answers(PERSON)) == []
    tier.close()


EXACT = msgspec.structs.replace(SECRET, exact_key=b"k" * 16, fingerprint="f")


@pytest.mark.parametrize("secret", [SECRET, EXACT], ids=["near", "exact"])
def test_what_waits_for_the_process_and_is_forgotten_meanwhile_is_not_kept(
    front_end, may_start, wait_until, tmp_path, secret
):
    url = f"sqlite:///{tmp_path}/answers.sqlite"
    killed = front_end.pid
    may_start.clear()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: front_end.health().detail == "no retrieval process")
    front_end.store(msgspec.structs.replace(secret, created_s=time.time() - 60.0))
    # By somebody else, of whom neither this client nor the next process hears.
    assert invalidate(url, "--namespace", PERSON) == 0
    front_end.store(answer("another", namespace=OTHER))
    may_start.set()
    wait_until(lambda: front_end.pid not in (None, killed))
    assert front_end.flush(60)
    tier = open_tier(url)
    assert list(tier.answers(PERSON)) == []
    assert tier.find_exact(PERSON, [b"k" * 16]) == []
    assert len(list(tier.answers(OTHER))) == 1
    tier.close()
    wait_until(lambda: front_end.stats().answers == 1)
