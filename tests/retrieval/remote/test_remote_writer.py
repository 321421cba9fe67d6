"""What a tier had, its index has after it, and no longer."""

import threading

import msgspec
import numpy as np
import pytest

from reprise.retrieval import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.remote.remote_index import RemoteError, RemoteIndex
from reprise.retrieval.remote.remote_writer import RemoteWriter


class HeldIndex(RemoteIndex):
    """An index in a dictionary, which fails or waits when it is told to."""

    def __init__(self):
        self.rows, self.fails, self.num_opened = {}, 0, 0
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.is_writing = threading.Event()

    def open(self):
        self.num_opened += 1

    def upsert(self, rows):
        self.is_writing.set()
        self.goes_on.wait(60)
        if self.fails:
            self.fails -= 1
            raise RemoteError("not now")
        self.rows.update(((row.namespace, row.answer_id), row.created_s) for row in rows)

    def remove(self, namespace, answer_ids):
        for answer_id in answer_ids:
            self.rows.pop((namespace, answer_id), None)

    def remove_namespace(self, namespace, *, created_until_s):
        kept = {key: s for key, s in self.rows.items() if s > created_until_s}
        self.rows = {**{k: s for k, s in self.rows.items() if k[0] != namespace}, **kept}

    def remove_older(self, created_s):
        self.rows = {key: s for key, s in self.rows.items() if s >= created_s}

    def search(self, namespace, vectors, count):
        raise NotImplementedError

    def settle(self):
        pass

    def close(self):
        pass


def answer(answer_id, *, dim=4, **options):
    made = Answer.create(prompt_token_ids=[1], response_token_ids=[2], answer_id=answer_id)
    vector = np.ones(dim, "<f2").tobytes()
    return msgspec.structs.replace(made, **{"embedding": vector, "embedder": "e", **options})


@pytest.fixture
def index():
    return HeldIndex()


@pytest.fixture
def writer(index):
    made = RemoteWriter(max_rows=100, ttl_s=None)
    made.start(index, embedder="e", dim=4)
    yield made
    index.goes_on.set()
    made.close()


def test_only_what_can_be_compared_is_held(index, writer):
    writer.written(
        [
            *(answer("a"), answer("b", embedder="other"), answer("c", embedding=b"")),
            *(answer("d", dim=5), answer("e", fingerprint="f", exact_key=b"k")),
        ]
    )
    assert writer.drain(60)
    assert set(index.rows) == {("", "a")}


def test_what_fails_is_written_later_by_an_index_opened_anew(index, writer):
    index.fails = 2
    writer.written([answer("a"), answer("b")])
    assert writer.drain(60)
    assert set(index.rows) == {("", "a"), ("", "b")}
    assert index.num_opened == 3
    assert writer.num_lost == 0


def test_what_others_remove_while_it_is_being_written_leaves_again(index, writer):
    index.goes_on.clear()
    writer.written([answer("a"), answer("b")])
    assert index.is_writing.wait(60)
    writer.written([answer("c"), answer("d")])
    writer.others_removed([("", "a"), ("", "c"), ("", "never")])
    index.goes_on.set()
    assert writer.drain(60)
    assert set(index.rows) == {("", "b"), ("", "d")}
    writer.others_removed([("", "b")])  # just written
    assert writer.drain(60)
    assert set(index.rows) == {("", "d")}


def test_what_others_wrote_since_a_namespace_was_forgotten_is_not_removed(index, wait_until):
    """The index is away for hours, and somebody else reaches it first."""
    writer = RemoteWriter(max_rows=100, ttl_s=None)
    invalidation = Invalidation.create(namespace="acme")
    writer.forgot(invalidation, [])
    index.rows = {
        ("acme", "old"): invalidation.made_s - 1.0,
        ("acme", "new"): invalidation.made_s + 60.0,
        ("other", "old"): invalidation.made_s - 1.0,
    }
    writer.start(index, embedder="e", dim=4)
    wait_until(lambda: ("acme", "old") not in index.rows)
    assert set(index.rows) == {("acme", "new"), ("other", "old")}
    writer.close()


def test_rows_are_dated_by_the_clock_that_machines_share(index, wait_until):
    """This one's is five hours ahead, and rows live for one."""
    shared_s = steady_clock.now_s() - 5 * 3600.0
    writer = RemoteWriter(max_rows=100, ttl_s=3600.0, ahead_s=lambda: -5 * 3600.0)
    index.rows = {("acme", "too old"): shared_s - 3700.0, ("acme", "of another"): shared_s}
    writer.start(index, embedder="e", dim=4)
    wait_until(lambda: ("acme", "too old") not in index.rows)
    assert set(index.rows) == {("acme", "of another")}
    writer.written([answer("a"), answer("b", namespace="acme")])
    assert writer.drain(60)
    assert index.rows["", "a"] == pytest.approx(shared_s, abs=60.0)
    writer.forgot(Invalidation.create(namespace="acme"), [])
    assert writer.drain(60)
    assert set(index.rows) == {("", "a")}
    writer.close()
