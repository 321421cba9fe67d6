"""The information on a request, and how the counts come from the worker."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from reprise.engine_ext.request import draft_counts_fetcher, request_info
from reprise.engine_ext.request.draft_counts_fetcher import DraftCountsFetcher
from reprise.engine_ext.request.request_info import (
    ClauseInfo,
    DraftCounts,
    DraftCountsStore,
    InfoCollector,
    RequestInfo,
    SourceCounts,
    counts_id,
    merged,
)
from reprise.retrieval.api.found_clause import FoundClause
from reprise.spec.api.recorded_steps import RecordedRequest, RecordedStep
from reprise.spec.api.stats import RequestStats


class Known:
    """One generation."""

    def __init__(self, kind: str, retrieval_ms: float | None) -> None:
        self.kind = kind
        self.similarity: float | None = None
        self._retrieval_ms = retrieval_ms
        self.found: list[FoundClause] = []

    def retrieval_ms(self) -> float | None:
        return self._retrieval_ms

    def clauses(self) -> list[FoundClause]:
        return self.found


def stats(steps: int, drafted: int, accepted: int) -> RequestStats:
    found = RequestStats(steps=steps)
    found.by_source["near_answer"].drafted = drafted
    found.by_source["near_answer"].accepted = accepted
    return found


class Workers:
    """Two workers, of which the second drafts; two requests are over at the n-th time of asking."""

    def __init__(self, over_at: int = 1, ids: Sequence[str] = ("a", "b")) -> None:
        self._ids = ids
        self.store = DraftCountsStore()
        self.asked: list[list[str]] = []
        self._over_at = over_at

    async def ask(self, request_ids: Sequence[str]) -> list[Any]:
        self.asked.append(list(request_ids))
        if len(self.asked) == self._over_at:
            for id_, counts in zip(self._ids, (stats(5, 20, 9), None), strict=False):
                self.store.put(id_, counts)
        return [{}, self.store.take(request_ids)]


async def test_counts_come_from_whichever_worker_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draft_counts_fetcher, "_TIMEOUT_S", 60.0)  # a busy machine stands still
    collector = InfoCollector()
    known = Known("semantic", 2.5000000371)
    known.similarity = 0.75
    collector.add(known)
    collector.generates("a")
    collector.generates("b")
    workers = Workers(ids=collector.counts_ids)
    told = await collector.collect(DraftCountsFetcher(workers.ask).fetch)
    assert told.cache == ("semantic",)
    assert told.retrieval_ms == 2.5
    assert told.similarity == 0.75
    assert 0 < told.took_ms < 60_000
    assert not told.is_cached
    assert told.drafts is not None
    assert told.drafts.steps == 5
    assert told.drafts.by_source["near_answer"] == SourceCounts(20, 9)
    assert workers.store.take(collector.counts_ids) == {}


async def test_the_worker_is_asked_again_until_it_is_done_with_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draft_counts_fetcher, "_TIMEOUT_S", 60.0)  # a busy machine stands still
    collector = InfoCollector()
    collector.generates("a")
    workers = Workers(over_at=3, ids=collector.counts_ids)
    told = await collector.collect(DraftCountsFetcher(workers.ask).fetch)
    assert told.drafts is not None
    assert workers.asked == [collector.counts_ids] * 3


async def test_of_two_requests_of_one_id_each_gets_its_own_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the first were not there in time, and wait for whoever asks for them."""
    monkeypatch.setattr(draft_counts_fetcher, "_TIMEOUT_S", 60.0)  # a busy machine stands still
    first, second = InfoCollector(), InfoCollector()
    for collector in (first, second):
        collector.generates("a")
    workers = Workers(ids=[*first.counts_ids, *second.counts_ids])
    fetcher = DraftCountsFetcher(workers.ask)
    told = await asyncio.gather(*(each.collect(fetcher.fetch) for each in (second, first)))
    assert [each.drafts.steps for each in told if each.drafts is not None] == [0, 5]


async def test_a_worker_that_never_tells_costs_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert draft_counts_fetcher._TIMEOUT_S <= 1
    monkeypatch.setattr(draft_counts_fetcher, "_TIMEOUT_S", 0.1)
    for _ in range(5):
        collector, workers = InfoCollector(), Workers(over_at=99)
        collector.generates("a")
        assert (await collector.collect(DraftCountsFetcher(workers.ask).fetch)).drafts is None
        assert len(workers.asked) <= 4
        if len(workers.asked) >= 2:  # but where the machine stood still meanwhile
            return
    pytest.fail("it was asked once only, five times")


async def test_however_many_ask_the_workers_are_asked_for_all_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A question is a step's wait for everybody: there is one at a time, and a pause after it."""
    monkeypatch.setattr(draft_counts_fetcher, "_TIMEOUT_S", 60.0)  # a busy machine stands still
    asked: list[int] = []
    at_once = 0

    async def ask(request_ids: Sequence[str]) -> list[Any]:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        asked.append(len(request_ids))
        await asyncio.sleep(0.005)
        at_once -= 1
        # Each is over at its second time of asking.
        over = [id_ for id_ in request_ids if id_ in seen]
        seen.update(request_ids)
        return [{id_: {"steps": 1, "by_source": {}} for id_ in over}]

    seen: set[str] = set()
    fetcher = DraftCountsFetcher(ask)
    begun_s = time.monotonic()
    found = await asyncio.gather(*(fetcher.fetch([str(number)]) for number in range(100)))
    took_s = time.monotonic() - begun_s
    assert [list(one) for one in found] == [[str(number)] for number in range(100)]
    assert len(asked) <= 2 + took_s / draft_counts_fetcher._MIN_PAUSE_S
    assert len(asked) < 10
    async with asyncio.timeout(60.0):
        while fetcher._task is not None:
            await asyncio.sleep(draft_counts_fetcher._MIN_PAUSE_S)
    assert fetcher._waiting == {}


async def test_workers_that_cannot_be_asked_are_an_error_for_those_who_wait_only() -> None:
    async def fail(_request_ids: Sequence[str]) -> list[Any]:
        raise RuntimeError("the engine is dead")

    fetcher = DraftCountsFetcher(fail)
    with pytest.raises(RuntimeError, match="dead"):
        await fetcher.fetch(["a", "b"])
    workers = Workers()
    fetcher._ask_workers = workers.ask
    assert list(await fetcher.fetch(["a"])) == ["a"]


async def test_those_who_left_delay_nobody_and_are_seldom_asked_about(
    monkeypatch: pytest.MonkeyPatch, advance_clock: Callable[[float], None]
) -> None:
    """Of one that the engine never had, the workers hear nothing."""
    monkeypatch.setattr(draft_counts_fetcher, "_TIMEOUT_S", 60.0)  # a busy machine stands still
    monkeypatch.setattr(draft_counts_fetcher, "_LEFT_PAUSE_S", 600.0)
    workers = Workers(over_at=2)
    fetcher = DraftCountsFetcher(workers.ask)
    fetcher.drop(["left"])
    for _ in range(20):
        await asyncio.sleep(0)
    assert workers.asked == []  # until others ask
    assert list(await fetcher.fetch(["a"])) == ["a"]
    assert workers.asked == [["a", "left"]] * 2
    advance_clock(draft_counts_fetcher._LEFT_TIMEOUT_S)
    assert list(await fetcher.fetch(["b"])) == ["b"]
    async with asyncio.timeout(60.0):
        while fetcher._task is not None:
            await asyncio.sleep(draft_counts_fetcher._MIN_PAUSE_S)
    assert fetcher._left == {}


async def test_who_comes_while_another_waits_long_is_asked_for_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_TIMEOUT_S", "_MAX_PAUSE_S"):
        monkeypatch.setattr(draft_counts_fetcher, name, 60.0)
    workers = Workers()
    fetcher = DraftCountsFetcher(workers.ask)
    waiting = asyncio.create_task(fetcher.fetch(["unknown"]))
    async with asyncio.timeout(60.0):
        while len(workers.asked) < 7:  # the next pause is one of 2.56 s
            await asyncio.sleep(0.01)
    workers.store.put("a", None)
    begun_s = time.monotonic()
    assert list(await fetcher.fetch(["a"])) == ["a"]
    assert time.monotonic() - begun_s < 2.0
    waiting.cancel()


async def test_an_exact_hit_asks_no_worker() -> None:
    collector, workers = InfoCollector(), Workers()
    collector.add(Known("exact", None))
    told = await collector.collect(DraftCountsFetcher(workers.ask).fetch)
    assert told == RequestInfo(("exact",), DraftCounts(), None, took_ms=told.took_ms)
    assert told.is_cached
    assert "similarity" not in told.as_json()
    assert workers.asked == []


def test_what_nobody_asks_for_gives_way() -> None:
    store = DraftCountsStore()
    for number in range(3000):
        store.put(str(number), None)
    assert store.take(["0"]) == {}
    assert store.take(["2999"]) == {"2999": {"steps": 0, "by_source": {}}}


def test_what_nobody_asks_for_within_a_minute_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    store, now_s = DraftCountsStore(), 1000.0
    monkeypatch.setattr(request_info.time, "monotonic", lambda: now_s)
    store.put("old", None, RecordedRequest([RecordedStep(1, 0)]))
    now_s += 59.0
    store.put("young", None, RecordedRequest([RecordedStep(1, 0)]))
    assert list(store._stored) == ["old", "young"]
    now_s += 2.0
    assert store.take([]) == {}
    assert list(store._stored) == ["young"]


def test_several_requests_are_combined() -> None:
    one = RequestInfo(
        ("miss",), DraftCounts(1, {"corpus": SourceCounts(4, 2)}), 3.0, similarity=0.5, took_ms=9.0
    )
    other = RequestInfo(
        ("exact",), DraftCounts(2, {"context": SourceCounts(1, 1)}), 5.0, took_ms=2.0
    )
    both = merged([one, other])
    assert both.cache == ("exact", "miss")
    assert both.drafts == DraftCounts(
        3, {"corpus": SourceCounts(4, 2), "context": SourceCounts(1, 1)}
    )
    assert both.retrieval_ms == 5.0
    assert (both.similarity, both.took_ms, both.is_cached) == (0.5, 9.0, False)
    assert merged([one, RequestInfo(("miss",), None, None)]).drafts is None


async def test_clauses_are_told_in_ascii_and_no_longer_than_a_header_allows() -> None:
    collector = InfoCollector()
    known = Known("miss", None)
    known.found = [FoundClause("如何取消订单"), FoundClause("能不能退款" * 40, "但是")]
    collector.add(known)
    info = await collector.collect(DraftCountsFetcher(Workers().ask).fetch)
    assert [clause.connective for clause in info.clauses] == ["", "但是"]
    assert merged([info, info]).clauses == info.clauses
    line = info.as_json()
    assert line.isascii()
    assert json.loads(line)["clauses"][0] == {"text": "如何取消订单", "connective": ""}
    longest = [ClauseInfo("退" * 60, str(number)) for number in range(20)]
    many = [msgspec.structs.replace(info, clauses=(clause,)) for clause in longest]
    assert len(merged(many).as_json()) < 4096


async def test_pieces_of_streamed_input_are_one_request() -> None:
    collector = InfoCollector()
    asked: list[list[str]] = []

    async def fetch(request_ids: Sequence[str]) -> dict[str, DraftCounts | None]:
        asked.append(list(request_ids))
        return {each: DraftCounts(2) for each in request_ids}

    for request_id in ("a", "a", "b", "a"):
        collector.generates(request_id)
    collector.generates_nothing("b")
    info = await collector.collect(fetch)
    assert asked == [[counts_id(collector.nonce, "a")]]
    assert info.drafts is not None
