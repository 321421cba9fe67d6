"""What leaves no trace, and when: at once what is to be forgotten, together what just leaves."""

import time

import pytest

from reprise.retrieval import RetrievalConfig
from reprise.retrieval.api.invalidation import Forgotten, Invalidation
from reprise.retrieval.in_process import retrieval_worker, retriever_memory
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.in_process.recent_removals import RecentRemovals
from reprise.retrieval.search import snapshot_writer
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.near_search import NearSearch
from reprise.tests.retrieval.numbered_answers import answer


@pytest.fixture
def written(monkeypatch):
    """One item for each time that an index file is written."""
    times = []
    write = snapshot_writer.write_snapshot

    def count(*arguments, **options):
        times.append(time.monotonic())
        write(*arguments, **options)

    monkeypatch.setattr(snapshot_writer, "write_snapshot", count)
    return times


@pytest.fixture
def erased(monkeypatch):
    """The answers of each time that traces are erased."""
    calls = []
    erase = NearSearch.erase

    def note(self, keys, **how):
        calls.append(set(keys))
        erase(self, keys, **how)

    monkeypatch.setattr(NearSearch, "erase", note)
    return calls


@pytest.fixture
def make(tmp_path):
    made = []

    def make(**settings):
        config = RetrievalConfig(
            url=f"sqlite:///{tmp_path}/answers.sqlite",
            embedding_model="lexical",
            clauses=False,
            **settings,
        )
        made.append(LocalRetriever(config, embedder=Embedder("lexical")))
        assert made[-1].wait_until_warm(60)
        return made[-1]

    yield make
    for retriever in made:
        retriever.close()


def test_answers_that_expire_one_by_one_are_erased_together(
    make, written, erased, wait_until, advance_clock, monkeypatch
):
    """Each time, the file of the index would be written, and the graphs be looked through."""
    monkeypatch.setattr(retrieval_worker, "_ERASE_EVERY_S", 600.0)
    retriever = make(ttl_s=1000)
    for number in range(10):
        retriever.store(answer(number))
        advance_clock(90)
    assert retriever.flush(60)
    began = len(written)
    while (left := retriever.stats().answers) > 0:
        advance_clock(90)
        wait_until(lambda left=left: retriever.stats().answers < left)
    assert len(written) - began <= 1
    assert len(erased) <= 1
    retriever.close()
    assert set().union(*erased) == {("", f"id{number}") for number in range(10)}
    assert len(written) - began <= 2


def test_what_expired_is_erased_soon(make, erased, wait_until, advance_clock, monkeypatch):
    monkeypatch.setattr(retrieval_worker, "_ERASE_EVERY_S", 0.1)
    retriever = make(ttl_s=1000)
    for number in range(2):
        retriever.store(answer(number))
        assert retriever.flush(60)
        advance_clock(500)
        wait_until(lambda number=number: number == 0 or {("", "id0")} in erased)


def test_what_is_forgotten_is_erased_at_once_with_what_left_before(
    make, written, erased, wait_until, monkeypatch
):
    monkeypatch.setattr(retrieval_worker, "_ERASE_EVERY_S", 600.0)
    retriever = make()
    for number in range(3):
        retriever.store(answer(number))
    assert retriever.flush(60)
    retriever._forgotten(Forgotten(removed=(("", "id0"),)))
    wait_until(lambda: erased == [{("", "id0")}])  # nothing was erased for a while
    retriever._forgotten(Forgotten(removed=(("", "id1"),)))
    assert retriever.flush(60)
    assert len(erased) == 1
    began = len(written)
    assert retriever.forget(Invalidation.create(answer_id="id2"), timeout_s=60).done
    wait_until(lambda: set().union(*erased[1:]) == {("", "id1"), ("", "id2")})
    wait_until(lambda: len(written) > began, timeout_s=20)


def test_what_another_replica_forgot_is_erased_at_once_though_it_is_not_held_here(
    make, erased, wait_until, monkeypatch, advance_clock
):
    """It left memory, or was found beyond it: that it goes is told only by the tier."""
    monkeypatch.setattr(retriever_memory, "_FOLLOWS_WITHIN_S", 50.0)
    monkeypatch.setattr(retrieval_worker, "_ERASE_EVERY_S", 600.0)
    retriever = make()
    retriever._forgotten(Forgotten(removed=(("acme", "id0"),)))
    wait_until(lambda: erased == [{("acme", "id0")}])  # nothing was erased for a while
    retriever._forgotten(Forgotten((Invalidation.create(namespace="acme"),)))
    retriever._forgotten(Forgotten(removed=(("acme", "id1"),)))
    wait_until(lambda: erased[1:] == [{("acme", "id1")}], timeout_s=20)
    # Room was made for others.
    retriever._forgotten(Forgotten(removed=(("beta", "id2"),)))
    advance_clock(60)
    retriever._forgotten(Forgotten(removed=(("acme", "id3"),)))
    assert retriever.flush(60)
    assert len(erased) == 2


def test_a_removal_that_is_not_remembered_may_be_any(monkeypatch):
    monkeypatch.setattr("reprise.retrieval.in_process.recent_removals._MAX_REMEMBERED", 3)
    removals = RecentRemovals()
    removals.note([("a", "1"), ("a", "2"), ("a", "1")])
    assert removals.num == 3
    assert removals.has_since(2, ("a", "1"))
    assert not removals.has_since(2, ("a", "2"))
    assert not removals.has_since(0, ("b", "1"))
    removals.note([("a", "3"), ("a", "4")])
    assert removals.has_since(0, ("b", "1"))
    assert not removals.has_since(3, ("a", "1"))
