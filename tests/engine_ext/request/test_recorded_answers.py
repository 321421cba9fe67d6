"""Recorded answers: each namespace's by themselves, bounded, and forgotten when they are to be."""

from collections.abc import AsyncGenerator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from reprise.engine_ext.answer_page.records import MAX_RECORDED
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.frontend.info_reporter import InfoReporter, current_info
from reprise.engine_ext.request import recorded_answers
from reprise.engine_ext.request.http_context import HttpRequestContext, current_http_context
from reprise.engine_ext.request.recorded_answers import RecordedAnswer, RecordedAnswers
from reprise.engine_ext.request.tenants import private_namespace
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock
from reprise.spec.api.recorded_steps import RecordedNear, RecordedRequest, RecordedStep

STEPS = RecordedRequest([RecordedStep(1, 0), RecordedStep(1, 0)])


def answer(number: int) -> RecordedAnswer:
    return RecordedAnswer([1, 2], [number, 8, 9], STEPS, steady_clock.now_s())


def test_a_namespace_has_its_own_the_last_one_first() -> None:
    kept = RecordedAnswers()
    for number in range(MAX_RECORDED + 5):
        kept.add("one", answer(number))
    kept.add("another", answer(100))
    assert [one.token_ids[0] for one in kept.of("one")] == list(range(MAX_RECORDED + 4, 4, -1))
    assert [one.token_ids[0] for one in kept.of("another")] == [100]
    assert kept.of("") == []


def test_what_belongs_to_nobody_is_not_kept() -> None:
    kept = RecordedAnswers()
    private = private_namespace()
    kept.add(private, answer(1))
    assert kept.of(private) == []


def test_namespaces_and_lengths_are_bounded() -> None:
    kept = RecordedAnswers()
    for number in range(recorded_answers._MAX_NAMESPACES + 1):
        kept.add(f"n{number}", answer(number))
    assert kept.of("n0") == []
    assert kept.of("n1")
    kept.add("long", RecordedAnswer([1] * recorded_answers._MAX_TOKENS, [1], STEPS, 0.0))
    assert kept.of("long") == []
    near = {"a": RecordedNear(0.9, 0, [1] * recorded_answers._MAX_TOKENS)}
    kept.add("long", RecordedAnswer([1], [1], RecordedRequest([], near), 0.0))
    assert kept.of("long") == []


def test_memory_is_bounded_whoever_asks_for_it() -> None:
    kept = RecordedAnswers()
    large = RecordedAnswer([1] * (recorded_answers._MAX_TOKENS - 1), [1], STEPS, 0.0)
    room = recorded_answers._MAX_TOKENS_IN_ALL // recorded_answers._MAX_TOKENS
    kept.add("first", answer(1))
    for number in range(room + 3):
        kept.add(f"n{number % 5}", large)
    held = [each for one in kept._by_namespace.values() for each in one]
    assert len(held) == room
    assert kept._num_tokens == sum(each.num_tokens for each in held)
    assert kept.of("first") == []
    kept.forget(Invalidation.create(everything=True))
    assert kept._num_tokens == 0


def test_what_is_to_be_forgotten_is() -> None:
    kept = RecordedAnswers()
    for namespace in ("a", "b"):
        kept.add(namespace, answer(1))
    kept.forget(Invalidation.create(namespace="a", answer_id="x"))
    assert kept.of("a") == []
    assert kept.of("b")
    kept.forget(Invalidation.create(everything=True))
    assert kept.of("b") == []


@pytest.mark.parametrize("after_s", [0.0, 1.0])
def test_what_may_show_what_was_forgotten_meanwhile_is_not_kept(
    advance_clock: Callable[[float], None], after_s: float
) -> None:
    kept = RecordedAnswers()
    before = answer(1)
    advance_clock(60)
    kept.forget(Invalidation.create(namespace="a"))
    # Workers draft from it until they have heard of it.
    advance_clock(after_s)
    for namespace in ("a", "b"):
        kept.add(namespace, before)
        kept.add(namespace, answer(2))
    assert kept.of("a") == []
    assert len(kept.of("b")) == 2
    advance_clock(3)
    kept.add("a", answer(3))
    assert len(kept.of("a")) == 1


def test_so_it_is_where_more_was_forgotten_than_is_known() -> None:
    kept = RecordedAnswers()
    before = answer(1)
    for number in range(recorded_answers._MAX_FORGETS):
        kept.forget(Invalidation.create(namespace=f"n{number}"))
    kept.add("a", before)
    assert kept.of("a") == []


def test_what_is_past_its_time_goes(advance_clock: Callable[[float], None]) -> None:
    kept = RecordedAnswers(ttl_s=100)
    early = answer(1)
    advance_clock(60)
    # The one that came first ended last.
    for one in (answer(2), early):
        kept.add("a", one)
    kept.add("b", early)
    kept.expire()
    assert len(kept.of("a")) == 2
    advance_clock(60)
    kept.expire()
    assert [one.token_ids[0] for one in kept.of("a")] == [2]
    assert kept.of("b") == []
    advance_clock(60)
    kept.expire()
    assert kept._by_namespace == {}
    assert kept._num_tokens == 0


class Request:
    """One request on its way through the reporter: its outputs, and what the worker tells."""

    def __init__(self, *, namespace: str | None, record: Any = STEPS) -> None:
        self.namespace = namespace
        self.kept = RecordedAnswers()
        self.errors = ErrorCounter()
        self.context = HttpRequestContext({}, None)
        told = {"steps": 2, "by_source": {}, "record": record}

        async def ask(request_ids: Sequence[str]) -> list[Any]:
            return [dict.fromkeys(request_ids, told)]

        self.reporter = InfoReporter(ask, recorded=self.kept, errors=self.errors)

    async def run(
        self, pieces: list[list[int]], *, forget: Invalidation | None = None, **how: Any
    ) -> list[Any]:
        async def outputs() -> AsyncGenerator[Any, None]:
            collector = current_info.get()
            assert collector is not None
            collector.namespace = self.namespace
            collector.generates("r")
            for number, piece in enumerate(pieces):
                if forget is not None:
                    self.kept.forget(forget)
                yield SimpleNamespace(
                    finished=number + 1 == len(pieces),
                    prompt_token_ids=[1, 2],
                    outputs=[SimpleNamespace(token_ids=piece)],
                )

        token = current_http_context.set(self.context)
        try:
            return [each async for each in self.reporter.add_to(outputs(), **how)]
        finally:
            current_http_context.reset(token)


@pytest.mark.parametrize(
    ("pieces", "is_delta"), [([[5], [6], [7]], True), ([[5], [5, 6], [5, 6, 7]], False)]
)
async def test_who_asks_has_the_steps_kept(pieces: list[list[int]], is_delta: bool) -> None:
    request = Request(namespace="one")
    given = await request.run(pieces, is_delta=is_delta, records=True, informs=False)
    (kept,) = request.kept.of("one")
    assert kept[:-1] == ([1, 2], [5, 6, 7], STEPS)
    assert not hasattr(given[-1], "reprise_info")
    assert request.context.take_info() is None
    assert request.errors.counts() == {}


@pytest.mark.parametrize(("namespace", "num_kept"), [("one", 0), ("another", 1)])
async def test_what_was_to_be_forgotten_while_it_ran_is_not_kept(
    namespace: str, num_kept: int
) -> None:
    request = Request(namespace="one")
    forget = Invalidation.create(namespace=namespace, answer_id="x")
    await request.run([[5], [5, 6], [5, 6, 7]], records=True, forget=forget)
    assert len(request.kept.of("one")) == num_kept


async def test_no_reply_has_the_steps() -> None:
    request = Request(namespace="one")
    await request.run([[5, 6, 7]], records=True)
    info = request.context.take_info()
    assert info is not None
    assert b"record" not in info


@pytest.mark.parametrize(
    ("namespace", "record", "records"),
    [
        (None, STEPS, True),  # its tenant is unknown
        ("one", None, True),  # the worker recorded nothing
        ("one", RecordedRequest([RecordedStep(1, 0)]), True),  # steps are missing
        ("one", STEPS, False),  # it did not ask
    ],
)
async def test_otherwise_nothing_is_kept(namespace: Any, record: Any, records: bool) -> None:
    request = Request(namespace=namespace, record=record)
    await request.run([[5, 6, 7]], records=records)
    assert request.kept._by_namespace == {}
    assert request.errors.counts() == {}


def test_the_client_asks_by_header_or_argument_for_one_answer() -> None:
    reporter = Request(namespace="one").reporter
    asks = {"reprise_record": "on"}
    assert not reporter.is_recorded(SamplingParams())
    assert reporter.is_recorded(SamplingParams(extra_args=asks))
    assert not reporter.is_recorded(SamplingParams(extra_args=asks, n=2))
    assert not reporter.is_wanted(SamplingParams(extra_args=asks))
