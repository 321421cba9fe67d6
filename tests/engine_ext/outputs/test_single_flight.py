"""Followers against what vLLM's own output processor makes of the same tokens."""

import asyncio
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.sampling_params import RequestOutputKind
from vllm.tracing import SpanAttributes
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason, output_processor
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.metrics.stats import IterationStats

from reprise.engine_ext.outputs.loop_turns import TOKENS_AT_ONCE
from reprise.engine_ext.outputs.replay import Ending
from reprise.tests.engine_ext.outputs.flight_desk import (
    EOS,
    KINDS,
    STOPS,
    TOKENIZER,
    Desk,
    Reader,
    fail,
    generations,
    late,
    make,
    reference,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    generation=generations(),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    stops=STOPS,
    include=st.booleans(),
    joins_at=st.integers(0, 8),
    leader_leaves_at=st.one_of(st.none(), st.integers(1, 8)),
    log_stats=st.booleans(),
)
def test_leader_and_follower_get_what_vllm_alone_gives(
    generation: tuple[list[list[int]], FinishReason],
    kinds: tuple[RequestOutputKind, RequestOutputKind],
    stops: list[str],
    include: bool,
    joins_at: int,
    leader_leaves_at: int | None,
    log_stats: bool,
) -> None:
    steps, reason = generation
    params = {"stop": stops, "include_stop_str_in_output": include}
    desk = Desk(log_stats=log_stats)
    leader, leader_queue = make("leader", kinds[0], **params)
    follower, follower_queue = make("follower", kinds[1], **params)
    desk.lead(leader, leader_queue)
    leads, follows = Reader(kinds[0], leader_queue), Reader(kinds[1], follower_queue)
    joined = left = False
    stopped: list[str] = []
    for index, step in enumerate(steps):
        if index == joins_at:
            joined = desk.flights.join(b"k", follower, "p", follower_queue)
            follows.take()
        if index == leader_leaves_at and joined and desk.processor.has_request("leader"):
            left = True
            assert desk.processor.abort_requests(["leader"], internal=True) == []
            leads.take()
        stopped += desk.emit("leader", step, reason if index == len(steps) - 1 else None)
        leads.take()
        follows.take()
        if not len(desk.flights):
            break
    wanted = reference(steps, reason, kinds[1], params)
    if joined:
        assert follows.result == wanted
    if not left:
        assert leads.result == reference(steps, reason, kinds[0], params)
    assert [(each.text, each.token_ids) for each in desk.finished] == [
        reference(steps, reason, RequestOutputKind.FINAL_ONLY, params)[:2]
    ]
    assert (desk.begun, desk.ended) == (1, 1)
    by_stop_string = isinstance(wanted[2][1], str)
    assert stopped in (["leader"], []) if by_stop_string else stopped == []
    assert desk.processor.request_states == {}
    assert len(desk.flights) == 0
    assert desk.errors.counts() == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leader_leaves", [False, True])
@pytest.mark.parametrize("ends_early", [False, True])
async def test_who_follows_late_catches_up_in_pieces(
    kind: RequestOutputKind, leader_leaves: bool, ends_early: bool
) -> None:
    """While the generation goes on, or is over before."""
    steps = [TOKENIZER.encode("ab" * 350), TOKENIZER.encode("cé"), [EOS]]
    desk = Desk()
    desk.lead(*make("leader", RequestOutputKind.FINAL_ONLY))
    desk.emit("leader", steps[0])
    follower, queue = make("follower", kind)
    reader = Reader(kind, queue)
    assert desk.flights.join(b"k", follower, "p", queue)
    detokenizer = desk.processor.request_states["follower"].detokenizer
    assert detokenizer is not None
    assert detokenizer.num_output_tokens() == TOKENS_AT_ONCE
    if leader_leaves:
        assert desk.processor.abort_requests(["leader"], internal=True) == []
    if not ends_early:
        await turn(desk, reader)
        assert detokenizer.num_output_tokens() == len(steps[0])
    assert desk.emit("leader", steps[1]) == []
    assert desk.emit("leader", steps[2], FinishReason.STOP) == []
    await turn(desk, reader)
    assert reader.result == reference(steps, FinishReason.STOP, kind, {})
    assert desk.processor.request_states == {}
    assert len(desk.flights) == 0
    assert desk.errors.counts() == {}


@pytest.mark.parametrize("leaves", [False, True])
async def test_an_answer_that_only_late_ones_get_is_reported_once_one_has_it(leaves: bool) -> None:
    tokens = [*TOKENIZER.encode("ab" * 350), EOS]
    desk = Desk()
    desk.lead(*make("leader", RequestOutputKind.DELTA))
    desk.emit("leader", tokens[:-1])
    readers = []
    for name in ("one", "follower"):
        request, queue = make(name, RequestOutputKind.DELTA)
        assert desk.flights.join(b"k", request, "p", queue)
        readers.append(Reader(RequestOutputKind.DELTA, queue))
    assert desk.processor.abort_requests(["leader"], internal=True) == []
    assert desk.emit("leader", tokens[-1:], FinishReason.STOP) == []
    assert (desk.finished, desk.ended) == ([], 0)
    if leaves:
        desk.processor.abort_requests(["one", "follower"], internal=True)
        assert desk.ended == 1
    else:
        request, queue = make("last", RequestOutputKind.DELTA)
        assert desk.flights.join(b"k", request, "p", queue)
        readers.append(Reader(RequestOutputKind.DELTA, queue))
    await turn(desk, readers[1])
    assert [(one.token_ids, one.text) for one in desk.finished] == (
        [] if leaves else [(tokens, "ab" * 350)]
    )
    for reader in [] if leaves else readers:
        reader.take()
        assert reader.result == ("ab" * 350, tokens, ("stop", None))
    assert desk.ended == 1
    assert len(desk.flights) == 0
    assert desk.processor.request_states == {}
    assert desk.errors.counts() == {}


async def test_a_late_one_that_fails_at_the_end_ends_the_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    desk.lead(*make("leader", RequestOutputKind.DELTA))
    desk.emit("leader", TOKENIZER.encode("ab" * 350))
    request, queue = make("follower", RequestOutputKind.DELTA)
    assert desk.flights.join(b"k", request, "p", queue)
    assert desk.processor.abort_requests(["leader"], internal=True) == []
    assert desk.emit("leader", [EOS], FinishReason.STOP) == []
    broken_for(desk, "follower", monkeypatch)
    for _ in range(20):
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="broken"):
        await queue.get()
    assert (desk.finished, desk.ended, len(desk.flights)) == ([], 1, 0)
    assert desk.errors.counts() == {"single_flight": 1}


async def turn(desk: Desk, reader: Reader) -> None:
    """Until those who were behind are not."""
    for _ in range(20):
        await asyncio.sleep(0)
        reader.take()
    assert "follower" not in desk.flights._late


async def test_who_leaves_while_it_is_behind_leaves_nothing() -> None:
    desk = Desk()
    desk.lead(*make("leader", RequestOutputKind.DELTA))
    desk.emit("leader", TOKENIZER.encode("ab" * 350))
    follower, queue = make("follower", RequestOutputKind.DELTA)
    assert desk.flights.join(b"k", follower, "p", queue)
    assert desk.processor.abort_requests(["follower"], internal=True) == []
    await turn(desk, Reader(RequestOutputKind.DELTA, queue))
    assert desk.processor.abort_requests(["leader"], internal=True) == ["leader"]
    assert desk.processor.request_states == {}


async def test_a_stop_string_that_only_a_late_one_finds_stops_the_engine() -> None:
    desk = Desk()
    desk.lead(*make("leader", RequestOutputKind.DELTA, stop=["xyz"]))
    desk.emit("leader", TOKENIZER.encode("ab" * 350))
    follower, queue = make("follower", RequestOutputKind.DELTA, stop=["xyz"])
    reader = Reader(RequestOutputKind.DELTA, queue)
    assert desk.flights.join(b"k", follower, "p", queue)
    assert desk.processor.abort_requests(["leader"], internal=True) == []
    assert desk.emit("leader", TOKENIZER.encode("xyz")) == []
    await turn(desk, reader)
    assert (reader.text, reader.end) == ("ab" * 350, ("stop", "xyz"))
    assert desk.emit("leader", TOKENIZER.encode("a")) == ["leader"]
    assert len(desk.flights) == 0


def test_the_engine_is_stopped_when_the_last_one_is_gone() -> None:
    desk = Desk()
    desk.lead(*make("leader", RequestOutputKind.DELTA))
    for name in ("one", "two"):
        request, queue = make(name, RequestOutputKind.DELTA)
        assert desk.flights.join(b"k", request, "p", queue)
    assert desk.processor.abort_requests(["external-leader"], internal=False) == []
    assert desk.processor.abort_requests(["one"], internal=True) == []
    assert desk.processor.abort_requests(["two"], internal=True) == ["leader"]
    assert len(desk.flights) == 0
    assert not desk.flights.join(b"k", *late())


def test_what_is_aborted_or_failed_is_no_answer() -> None:
    desk = Desk()
    for reason in (FinishReason.ABORT, FinishReason.ERROR):
        desk.lead(*make("leader", RequestOutputKind.FINAL_ONLY))
        desk.emit("leader", [5, 6])
        desk.emit("leader", [], reason)
    assert desk.finished == []
    assert len(desk.flights) == 0


def test_an_aborted_leader_alone_is_forgotten() -> None:
    desk = Desk()
    desk.lead(*make("leader", RequestOutputKind.DELTA))
    assert desk.processor.abort_requests(["leader"], internal=True) == ["leader"]
    assert desk.emit("leader", [5], FinishReason.STOP) == []
    assert desk.finished == []


async def test_followers_of_a_refused_leader_fail_with_it() -> None:
    desk = Desk()
    desk.flights.lead(b"k", "leader", watcher=desk)
    request, queue = make("follower", RequestOutputKind.DELTA)
    assert desk.flights.join(b"k", request, "p", queue)
    desk.flights.cancel("leader", RuntimeError("queue is full"))
    with pytest.raises(RuntimeError, match="queue is full"):
        await queue.get()
    assert desk.processor.request_states == {}


class RefusalError(Exception):
    """What vLLM 0.33 makes of the error in an output."""


class RefusingError:
    """As vLLM 0.33's `RequestError`."""

    def to_exception(self) -> Exception:
        return RefusalError("Generation is paused.")


def refuse(desk: Desk, request_id: str) -> None:
    """Refuse a request on its arrival in the engine, as vLLM 0.33 does."""
    if "error" in EngineCoreOutput.__struct_fields__:
        from vllm.outputs import RequestError

        error = RequestError(code="engine_paused", message="paused", retryable=True)
        output = EngineCoreOutput(request_id, [], finish_reason=FinishReason.ERROR, error=error)
    else:
        # vLLM 0.32 knows no such output: its processor would make an empty answer of it.
        class RefusedOutput(EngineCoreOutput):  # type: ignore[misc]
            error: Any = None

        output = RefusedOutput(
            request_id, [], finish_reason=FinishReason.ERROR, error=RefusingError()
        )
        state = desk.processor.request_states.get(request_id)
        if state is not None:
            state.queue.put(output.error.to_exception())
            desk.processor._finish_request(state)
    assert desk.processor.process_outputs([output], 1.0, None, "w").reqs_to_abort == []


@pytest.mark.parametrize("leader_left", [False, True])
async def test_followers_of_a_leader_that_the_engine_refuses_get_its_error(
    leader_left: bool,
) -> None:
    """Each an exception of its own; an empty answer would look like one of the model's."""
    desk = Desk()
    leader, leader_queue = make("leader", RequestOutputKind.FINAL_ONLY)
    desk.lead(leader, leader_queue)
    queues = [] if leader_left else [leader_queue]
    for name in ("one", "two"):
        request, queue = make(name, RequestOutputKind.FINAL_ONLY)
        assert desk.flights.join(b"k", request, "p", queue)
        queues.append(queue)
    if leader_left:
        assert desk.processor.abort_requests(["leader"], internal=True) == []
    refuse(desk, "leader")
    errors = []
    for queue in queues:
        with pytest.raises(Exception, match="aused") as caught:
            await queue.get()
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == len(queues)
    assert desk.processor.request_states == {}
    assert (len(desk.flights), desk.finished, desk.ended) == (0, [], 1)
    assert desk.errors.counts() == {}
    # The next one is no follower of what is over.
    assert not desk.flights.join(b"k", *late())


def test_a_recorded_request_is_not_followed_unless_it_may_be() -> None:
    desk = Desk()
    desk.flights.lead(None, "leader", watcher=desk)
    assert not desk.flights.join(b"k", *late())


def broken_for(desk: Desk, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output for this request fails from now on."""
    original = desk.flights._feeder.feed

    def feed(request_id: str, *args: Any, **kwargs: Any) -> None:
        if request_id == name:
            fail()
        original(request_id, *args, **kwargs)

    monkeypatch.setattr(desk.flights._feeder, "feed", feed)


async def test_a_follower_that_fails_leaves_the_leader_and_the_others_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    leader, leader_queue = make("leader", RequestOutputKind.DELTA)
    desk.lead(leader, leader_queue)
    queues = {}
    for name in ("bad", "good"):
        request, queues[name] = make(name, RequestOutputKind.DELTA)
        assert desk.flights.join(b"k", request, "p", queues[name])
    broken_for(desk, "bad", monkeypatch)
    assert desk.emit("leader", [5, 6]) == []
    assert desk.processor.has_request("leader")
    with pytest.raises(RuntimeError, match="broken"):
        await queues["bad"].get()
    assert desk.emit("leader", [7], FinishReason.LENGTH) == []
    for queue in (leader_queue, queues["good"]):
        reader = Reader(RequestOutputKind.DELTA, queue)
        reader.take()
        assert reader.token_ids == [5, 6, 7]
    assert [finished.token_ids for finished in desk.finished] == [[5, 6, 7]]
    assert len(desk.flights) == 0


def test_the_engine_is_stopped_when_the_last_follower_fails_after_the_leader_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    desk.lead(*make("leader", RequestOutputKind.DELTA))
    request, queue = make("follower", RequestOutputKind.DELTA)
    assert desk.flights.join(b"k", request, "p", queue)
    assert desk.processor.abort_requests(["leader"], internal=True) == []
    broken_for(desk, "follower", monkeypatch)
    assert desk.emit("leader", [5, 6]) == ["leader"]
    assert len(desk.flights) == 0
    assert desk.processor.request_states == {}


def test_whoever_cannot_follow_is_generated_for(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    desk.lead(*make("leader", RequestOutputKind.DELTA))
    desk.emit("leader", [5, 6])
    broken_for(desk, "late", monkeypatch)
    request, prompt, queue = late()
    assert not desk.flights.join(b"k", request, prompt, queue)
    assert list(desk.processor.request_states) == ["leader"]
    assert queue.get_nowait() is None
    assert desk.emit("leader", [7], FinishReason.LENGTH) == []
    assert [finished.num_followers for finished in desk.finished] == [0]


def test_nobody_follows_one_of_lower_priority() -> None:
    desk = Desk()
    request, queue = make("leader", RequestOutputKind.DELTA)
    desk.flights.lead(b"k", "leader", watcher=desk, priority=5)
    desk.processor.add_request(request, "p", None, 0, queue)
    for priority, follows in ((4, False), (5, True), (6, True)):
        request, queue = make(f"of {priority}", RequestOutputKind.DELTA)
        request.priority = priority
        assert desk.flights.join(b"k", request, "p", queue) is follows


def test_followers_take_no_place_of_those_that_wait_for_the_engine() -> None:
    desk = Desk()
    processor = desk.processor
    desk.lead(*make("leader", RequestOutputKind.DELTA))
    waiting = processor.get_num_queued_tokens()
    assert waiting > 0
    for name in ("one", "two", "three"):
        request, queue = make(name, RequestOutputKind.DELTA)
        assert desk.flights.join(b"k", request, "p", queue)
        assert processor.get_num_unfinished_requests() == 1
        assert processor.get_num_queued_tokens() == waiting
    processor.add_request(*make_other(), None, 0, RequestOutputCollector(KINDS[0], "other"))
    assert processor.get_num_unfinished_requests() == 2
    # The engine goes on for those who follow.
    processor.abort_requests(["leader"], internal=True)
    assert processor.get_num_unfinished_requests() == 2
    assert processor.get_num_queued_tokens() == 2 * waiting
    processor.abort_requests(["one", "two", "three"], internal=True)
    assert processor.get_num_unfinished_requests() == 1


def make_other() -> tuple[EngineCoreRequest, str]:
    request, _ = make("other", RequestOutputKind.DELTA)
    return request, "p"


@pytest.mark.parametrize("leader_leaves", [False, True])
async def test_who_is_behind_takes_no_place_before_its_generation_ends_and_after(
    leader_leaves: bool,
) -> None:
    desk = Desk()
    processor = desk.processor
    desk.lead(*make("leader", RequestOutputKind.FINAL_ONLY))
    desk.emit("leader", TOKENIZER.encode("ab" * 350))
    request, queue = make("follower", RequestOutputKind.FINAL_ONLY)
    assert desk.flights.join(b"k", request, "p", queue)
    assert processor.get_num_unfinished_requests() == 1
    if leader_leaves:
        processor.abort_requests(["leader"], internal=True)
        assert processor.get_num_unfinished_requests() == 1
    desk.emit("leader", [EOS], FinishReason.STOP)
    assert processor.has_request("follower")
    assert processor.get_num_unfinished_requests() == 0
    await turn(desk, Reader(RequestOutputKind.FINAL_ONLY, queue))
    assert processor.get_num_unfinished_requests() == 0
    assert desk.errors.counts() == {}


async def test_what_is_replayed_takes_no_place_either() -> None:
    desk = Desk()
    request, queue = make("hit", RequestOutputKind.DELTA)
    ending = Ending(FinishReason.LENGTH, None)
    desk.replayer.replay(request, "p", queue, list(range(1, 90)), ending, None)
    assert desk.processor.has_request("hit")
    assert desk.processor.get_num_unfinished_requests() == 0
    desk.replayer.close()


@pytest.mark.parametrize("follows", [False, True])
def test_their_traces_belong_to_their_clients_and_have_sound_times(
    follows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk()
    desk.processor.tracing_enabled = True
    spans: list[dict[str, Any]] = []
    monkeypatch.setattr(output_processor, "instrument_manual", lambda **span: spans.append(span))
    monkeypatch.setattr(output_processor, "extract_trace_context", lambda headers: headers)
    request, queue = make("one", RequestOutputKind.FINAL_ONLY)
    request.trace_headers = {"traceparent": "of its client"}
    if follows:
        desk.lead(*make("leader", RequestOutputKind.FINAL_ONLY))
        assert desk.flights.join(b"k", request, "p", queue)
        output = EngineCoreOutput(
            request_id="leader", new_token_ids=[5], finish_reason=FinishReason.LENGTH
        )
        desk.processor.process_outputs([output], time.monotonic(), IterationStats(), None)
        assert spans.pop(0)["context"] is None  # of the leader
    else:
        ending = Ending(FinishReason.LENGTH, None)
        assert desk.replayer.replay(request, "p", queue, [5], ending, None)
    (span,) = spans
    assert span["context"] == request.trace_headers
    for part in ("PREFILL", "INFERENCE"):
        name = getattr(SpanAttributes, f"GEN_AI_LATENCY_TIME_IN_MODEL_{part}")
        assert 0.0 <= span["attributes"][name] < 60.0
