"""The vector index's file: a restart embeds nothing twice, and no file can do harm."""

import itertools
import os
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host.private_files import remove_stale_parts
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search import snapshot_writer
from reprise.retrieval.search.answer_index import AnswerIndex, prompt_mark
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.index_snapshot import (
    SnapshotError,
    read_snapshot,
    write_snapshot,
)
from reprise.retrieval.search.vector_index import GRAPH
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.sqlite_tier import SqliteTier

DIM = 24
IDENTITY = "model:24:hnsw-f16"


class CountingEmbedder(Embedder):
    """Remembers every text that it was given."""

    def __init__(self):
        super().__init__("lexical")
        self.texts = []

    def encode(self, texts, namespaces=()):
        self.texts += texts
        return super().encode(texts, namespaces)


def answer(number, *, text=None, namespace="acme"):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * 5,
        prompt_text=text or f"question number {number}",
        namespace=namespace,
        answer_id=f"id{number}",
    )


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def place(request, tmp_path):
    """(settings of a retriever, a tier from outside): answers written there bring no embedding."""
    if request.param == "sqlite":
        config = {"url": f"sqlite:///{tmp_path}/a.sqlite"}
        tier = SqliteTier(tmp_path / "a.sqlite")
    else:
        url = request.getfixturevalue("redis_server").url
        config = {"url": url, "index_snapshot": str(tmp_path / "a.sqlite.index")}
        tier = RedisTier(url, timeout_s=20.0)
    yield config, tier
    tier.close()


@pytest.fixture
def start():
    """A function that starts a retriever and waits until it is warm; all are closed at the end."""
    started = []

    def begin(config, **options):
        settings = RetrievalConfig(
            embedding_model="lexical", clauses=False, exact_search_limit=256, **config, **options
        )
        retriever = LocalRetriever(settings, embedder=CountingEmbedder())
        started.append(retriever)
        assert retriever.wait_until_warm(60)
        return retriever

    yield begin
    for retriever in started:
        retriever.close()


def texts_embedded(retriever):
    return retriever._worker.search.embedder.texts


def found(retriever, text, namespace="acme"):
    retriever.submit("r", namespace=namespace, text=text)
    assert retriever.flush(200)
    return [near.answer_id for near in retriever.poll("r")]


def test_a_restart_embeds_nothing_again(place, start, tmp_path):
    config, tier = place
    tier.put([answer(n) for n in range(400)])
    first = start(config)
    assert first.stats().embedded == 400
    while first.stats().waiting:
        time.sleep(0.01)
    before = found(first, "question number 77")
    first.close()
    assert (tmp_path / "a.sqlite.index").stat().st_mode & 0o777 == 0o600

    second = start(config)
    assert texts_embedded(second) == []
    assert (second.stats().embedded, second.stats().restored) == (0, 400)
    assert second.stats().refused_snapshots == 0
    assert len([u for u in second.updates() if u.added]) == 400
    assert found(second, "question number 77") == before
    assert before[0] == "id77"


def test_what_joined_and_left_since_is_embedded_and_gone(place, start):
    config, tier = place
    tier.put([answer(n) for n in range(300)])
    start(config).close()
    tier.remove("acme", [f"id{n}" for n in range(0, 300, 2)])
    tier.put([answer(n) for n in (1000, 1001)])
    tier.put([answer(1, text="another prompt under a known id")])

    second = start(config)
    texts = {"question number 1000", "question number 1001", "another prompt under a known id"}
    assert set(texts_embedded(second)) == texts
    assert (second.stats().embedded, second.stats().restored) == (3, 149)
    hits = [i for n in range(0, 300, 20) for i in found(second, f"question number {n}")]
    assert hits
    assert all(int(i[2:]) % 2 or i == "id1000" for i in hits)
    assert found(second, "another prompt under a known id")[0] == "id1"
    assert len(second._worker.search._index) == 152
    second.close()

    third = start(config)  # what the second dropped is not in its snapshot either
    assert (third.stats().embedded, third.stats().restored) == (0, 152)


def _cut(data):
    return data[: len(data) // 2]


def _flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _other_layout(data):
    return b"RPINDEX9" + data[8:]


def _nonsense_with_a_good_checksum(data):
    body = data[:8] + b"\xff" * 40
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    "spoil",
    [_cut, _flip, _other_layout, _nonsense_with_a_good_checksum, lambda _: b"", lambda _: b"{}"],
)
def test_a_damaged_or_foreign_file_is_one_line_and_costs_only_time(start, tmp_path, caplog, spoil):
    config = {"url": f"sqlite:///{tmp_path}/a.sqlite"}
    tier = SqliteTier(tmp_path / "a.sqlite")
    tier.put([answer(n) for n in range(20)])
    tier.close()
    start(config).close()
    file = tmp_path / "a.sqlite.index"
    file.write_bytes(spoil(file.read_bytes()))

    second = start(config)
    assert (second.stats().embedded, second.stats().restored) == (20, 0)
    assert second.stats().refused_snapshots == 1
    assert len([r for r in caplog.records if "Not using the index snapshot" in r.message]) == 1
    assert found(second, "question number 7")[0] == "id7"
    second.close()
    assert start(config).stats().restored == 20  # and the next one is whole again


def test_another_models_file_is_refused(tmp_path):
    index = AnswerIndex(DIM)
    index.add("", "id", np.ones(DIM, dtype=np.float32))
    path = tmp_path / "index"
    write_snapshot(path, index.parts(), identity=IDENTITY, dim=DIM)
    assert len(read_snapshot(path, identity=IDENTITY, dim=DIM)) == 1
    with pytest.raises(SnapshotError, match="made with model:24:hnsw-f16, not with other"):
        read_snapshot(path, identity="other:24:hnsw-f16", dim=DIM)
    with pytest.raises(SnapshotError, match="made with"):
        read_snapshot(path, identity=IDENTITY, dim=DIM + 1)


@pytest.mark.parametrize("limit", [256, 20_000])
def test_an_index_comes_back_as_it_was(tmp_path, limit):
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((3000, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = AnswerIndex(DIM, exact_search_limit=limit)
    for number, row in enumerate(rows):
        index.add(f"tenant{number % 2}", f"id{number}", row, b"%8d" % number)
    while index.maintain():
        pass
    for number in range(0, 3000, 3):
        index.remove(f"tenant{number % 2}", f"id{number}")
    path = tmp_path / "index"
    write_snapshot(path, index.parts(), identity=IDENTITY, dim=DIM)
    again = AnswerIndex(DIM, exact_search_limit=limit)
    again.restore(read_snapshot(path, identity=IDENTITY, dim=DIM))

    assert len(again) == len(index) == 2000
    for tenant in ("tenant0", "tenant1"):
        assert again.search(tenant, rows[:40], 8) == index.search(tenant, rows[:40], 8)
    assert again.claim("tenant0", "id0", b"%8d" % 0) is None  # it was dead
    assert again.claim("tenant0", "id2", b"%8d" % 3) is None  # another prompt
    assert again.claim("tenant1", "id2", b"%8d" % 2) is None  # another namespace
    assert again.claim("tenant0", "id2", b"%8d" % 2) == pytest.approx(rows[2], abs=1e-3)
    assert again.claim("tenant0", "id2", b"%8d" % 2) is None  # claimed already
    assert again.add("tenant0", "id4", rows[5]) is True  # in place of one never claimed
    assert again.search("tenant0", rows[5:6], 1)[0][0][0] == "id4"
    assert len(again.drop_unclaimed()) == 1998
    assert len(again) == 2


def test_the_mark_tells_prompts_apart():
    base = answer(1)
    assert prompt_mark(base) == prompt_mark(answer(1))
    assert len({prompt_mark(a) for a in (base, answer(1, text="other"), answer(2, text="q"))}) == 3


# Makes an index once, and a process that writes it for each line that it is sent.
WRITERS = """
import os, sys
from pathlib import Path
import numpy as np
from reprise.retrieval.search.answer_index import AnswerIndex
from reprise.retrieval.search.index_snapshot import write_snapshot
rows = np.random.default_rng(0).standard_normal((4000, 24)).astype(np.float32)
index = AnswerIndex(24)
for number, row in enumerate(rows): index.add('', f'id{number}', row)
for _ in sys.stdin:
    if (pid := os.fork()) == 0:
        for number in range(5000):
            write_snapshot(Path(sys.argv[1]), index.parts(), identity='model:24:hnsw-f16', dim=24)
            if not number:
                print(os.getpid(), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    print('ended', flush=True)
"""


def test_killed_in_mid_write_the_previous_file_is_whole(tmp_path):
    """Processes write snapshots over and over, and are killed, each after another time."""
    path = tmp_path / "index"
    cut_short = 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writers:
        for attempt in range(12):
            print("write", file=writers.stdin, flush=True)
            writer = int(writers.stdout.readline())  # it has written one
            time.sleep(0.003 * attempt)
            os.kill(writer, signal.SIGKILL)
            assert writers.stdout.readline() == "ended\n"
            [parts] = read_snapshot(path, identity=IDENTITY, dim=DIM)
            assert len(parts.tail_ids) == 4000
            cut_short += len(list(tmp_path.glob("*.part")))
            remove_stale_parts(path)
            assert not list(tmp_path.glob("*.part"))
        writers.stdin.close()
    assert cut_short  # or the test has shown nothing


def test_a_folder_that_cannot_be_written_is_one_line(start, tmp_path, caplog):
    config = {
        "url": f"sqlite:///{tmp_path}/a.sqlite",
        "index_snapshot": str(tmp_path / "missing" / "index"),
    }
    retriever = start(config)
    retriever.store(answer(1))
    assert retriever.flush(200)
    retriever.close()
    assert len([r for r in caplog.records if "was not written" in r.message]) == 1


def test_without_a_place_there_is_no_file(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    retriever = start({"url": "memory://", "index_snapshot": str(tmp_path / "index")})
    retriever.store(answer(1))
    assert retriever.flush(200)
    retriever.close()
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_is_written_while_serving(start, tmp_path, monkeypatch):
    """And adding goes on meanwhile: only the graph's upkeep waits."""
    monkeypatch.setattr("reprise.retrieval.search.snapshot_writer._FIRST_WRITE_S", 0.0)
    monkeypatch.setattr("reprise.retrieval.search.snapshot_writer._WRITING_SHARE", 1.0)
    config = {"url": f"sqlite:///{tmp_path}/a.sqlite"}
    retriever = start(config)
    for number in range(2000):
        retriever.store(answer(number))
    assert retriever.flush(200)
    file = tmp_path / "a.sqlite.index"
    while not file.exists():
        time.sleep(0.01)
    embedder = retriever._worker.search.embedder
    identity = f"{embedder.identity}:{GRAPH}"
    deadline_s = time.monotonic() + 200
    held = 0
    while held < 2000 and time.monotonic() < deadline_s:
        [parts] = read_snapshot(file, identity=identity, dim=embedder.dim)
        held = len([i for i in parts.graph_ids if i]) + len(parts.tail_ids)
    assert held == 2000


class FailingWrites:
    """Has each of so many files not be written, as on a full disk, and those after them be."""

    def __init__(self, monkeypatch):
        self.num_failing, self.tried_s = 0, []
        write = snapshot_writer.write_snapshot

        def fail_or_write(*arguments, **options):
            self.tried_s.append(time.monotonic())
            if len(self.tried_s) <= self.num_failing:
                raise OSError("no space left on device")
            write(*arguments, **options)

        monkeypatch.setattr(snapshot_writer, "write_snapshot", fail_or_write)

    def fail(self, count):
        self.tried_s.clear()
        self.num_failing = count


def ids_in(file, retriever):
    embedder = retriever._worker.search.embedder
    held = read_snapshot(file, identity=f"{embedder.identity}:{GRAPH}", dim=embedder.dim)
    return {i for parts in held for i in (*parts.graph_ids, *parts.tail_ids) if i}


def test_a_file_that_could_not_be_written_is_once_it_can_be(
    start, tmp_path, monkeypatch, wait_until, caplog
):
    writes, pause_s = FailingWrites(monkeypatch), 0.2
    monkeypatch.setattr(snapshot_writer, "_RETRY_S", pause_s)
    file, config = tmp_path / "a.sqlite.index", {"url": f"sqlite:///{tmp_path}/a.sqlite"}
    first = start(config)
    for number in (1, 2):
        first.store(answer(number))
    assert first.flush(200)
    first.close()
    second = start(config)
    assert ids_in(file, second) == {"id1", "id2"}
    writes.fail(3)
    second.forget(Invalidation.create(answer_id="id1"), timeout_s=60)
    wait_until(lambda: ids_in(file, second) == {"id2"})
    tries_s = writes.tried_s[:4]
    assert all(later - earlier >= pause_s for earlier, later in itertools.pairwise(tries_s))
    assert len([r for r in caplog.records if "was not written" in r.message]) == 1
    # Nothing has changed since: it is not written over and over.
    time.sleep(3 * pause_s)
    assert len(writes.tried_s) == 4


def test_health_and_figures_tell_of_a_file_that_cannot_be_written(
    start, tmp_path, monkeypatch, wait_until
):
    writes = FailingWrites(monkeypatch)
    monkeypatch.setattr(snapshot_writer, "_RETRY_S", 0.01)
    config = {"url": f"sqlite:///{tmp_path}/a.sqlite"}
    first = start(config)
    first.store(answer(1))
    assert first.flush(200)
    first.close()
    second = start(config)
    assert second.flush(200)
    assert (second.health().state, second.stats().errors) == ("ready", 0)
    writes.fail(1 << 30)
    second.forget(Invalidation.create(answer_id="id1"), timeout_s=60)
    wait_until(lambda: second.health().detail == "the index snapshot cannot be written")
    assert second.health().state == "degraded"
    assert second.stats().errors > 0
    writes.fail(0)
    wait_until(lambda: second.health().state == "ready")


@pytest.mark.parametrize("is_erased", [True, False])
def test_the_last_chance_to_write_the_file_is_taken(
    start, tmp_path, monkeypatch, wait_until, is_erased
):
    writes = FailingWrites(monkeypatch)
    file, config = tmp_path / "a.sqlite.index", {"url": f"sqlite:///{tmp_path}/a.sqlite"}
    if not is_erased:
        monkeypatch.setattr(snapshot_writer, "_FIRST_WRITE_S", 0.5)
    retriever = start(config)
    for number in (1, 2):
        retriever.store(answer(number))
    writes.fail(1)
    assert retriever.flush(200)
    if is_erased:
        retriever.forget(Invalidation.create(answer_id="id1"), timeout_s=60)
    wait_until(lambda: writes.tried_s)
    retriever.close()
    assert ids_in(file, retriever) == ({"id2"} if is_erased else {"id1", "id2"})
