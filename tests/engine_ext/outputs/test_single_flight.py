"""Replays and followers against what vLLM's own output processor makes of the same tokens."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.outputs.replay import Ending, Replayer
from reprise.engine_ext.outputs.single_flight import FinishedFlight, SingleFlight

EOS = 0
KINDS = list(RequestOutputKind)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that a letter outside ASCII takes several; id 0 ends the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": EOS} | {symbol: index + 1 for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


TOKENIZER = byte_tokenizer()


class Desk:
    """An output processor with everything of ours on it, and the requests handed to it."""

    def __init__(self, *, log_stats: bool = True) -> None:
        self.processor = OutputProcessor(TOKENIZER, log_stats=log_stats)
        self.errors = ErrorCounter()
        self.replayer = Replayer(self.processor, chunk_tokens=3, errors=self.errors)
        self.flights = SingleFlight(self.processor, self.replayer, errors=self.errors)
        self.finished: list[FinishedFlight] = []
        self.begun = self.ended = 0

    def on_first_token(self) -> None:
        self.begun += 1

    def on_finish(self, finished: FinishedFlight) -> None:
        assert self.ended == 0
        self.finished.append(finished)

    def on_end(self) -> None:
        self.ended += 1

    def lead(self, request: EngineCoreRequest, queue: RequestOutputCollector) -> None:
        self.flights.lead(b"k", request.request_id, watcher=self)
        self.processor.add_request(request, "p", None, 0, queue)

    def emit(
        self, request_id: str, token_ids: list[int], reason: FinishReason | None = None
    ) -> list[str]:
        output = EngineCoreOutput(
            request_id=request_id, new_token_ids=list(token_ids), finish_reason=reason
        )
        return self.processor.process_outputs([output], 1.0, None, "w").reqs_to_abort


def make(
    name: str, kind: RequestOutputKind, **params: Any
) -> tuple[EngineCoreRequest, RequestOutputCollector]:
    settings_ = {"temperature": 0, "max_tokens": 500, **params}
    request = EngineCoreRequest(
        request_id=name,
        external_req_id=f"external-{name}",
        prompt_token_ids=TOKENIZER.encode("question"),
        mm_features=None,
        sampling_params=SamplingParams(output_kind=kind, **settings_),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return request, RequestOutputCollector(kind, name)


class Reader:
    """What a client makes of a request's outputs, by the kind it asked for."""

    def __init__(self, kind: RequestOutputKind, queue: RequestOutputCollector) -> None:
        self._kind = kind
        self._queue = queue
        self.text = ""
        self.token_ids: list[int] = []
        self.end: tuple[str | None, Any] | None = None
        self.pieces = 0

    def take(self) -> None:
        output = self._queue.get_nowait()
        if output is None:
            return
        self.pieces += 1
        completion = output.outputs[0]
        is_delta = self._kind is RequestOutputKind.DELTA
        self.text = self.text + completion.text if is_delta else completion.text
        new = list(completion.token_ids)
        self.token_ids = self.token_ids + new if is_delta else new
        if output.finished:
            self.end = (completion.finish_reason, completion.stop_reason)

    @property
    def result(self) -> tuple[str, list[int], Any]:
        return self.text, self.token_ids, self.end


TEXTS = st.text(alphabet="abé€ \n😀", min_size=1, max_size=24)
STOPS = st.lists(st.sampled_from(["ab", "b", "é", "\n ", "ba", "😀a"]), max_size=2, unique=True)


@st.composite
def generations(draw: st.DrawFn) -> tuple[list[list[int]], FinishReason]:
    """Steps of one to four tokens, and how the engine ends."""
    token_ids = TOKENIZER.encode(draw(TEXTS))
    reason = draw(st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]))
    if reason is FinishReason.STOP:
        token_ids.append(EOS)
    steps = []
    while token_ids:
        size = draw(st.integers(1, 4))
        steps.append(token_ids[:size])
        token_ids = token_ids[size:]
    return steps, reason


def reference(
    steps: list[list[int]], reason: FinishReason, kind: RequestOutputKind, params: dict[str, Any]
) -> tuple[str, list[int], Any]:
    """vLLM alone, with the same steps."""
    processor = OutputProcessor(TOKENIZER, log_stats=False)
    request, queue = make("reference", kind, **params)
    processor.add_request(request, "p", None, 0, queue)
    reader = Reader(kind, queue)
    for index, step in enumerate(steps):
        output = EngineCoreOutput(
            request_id="reference",
            new_token_ids=list(step),
            finish_reason=reason if index == len(steps) - 1 else None,
        )
        processor.process_outputs([output])
        reader.take()
    return reader.result


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


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    generation=generations(),
    kind=st.sampled_from(KINDS),
    stops=STOPS,
    include=st.booleans(),
    special=st.booleans(),
)
def test_a_replay_gives_what_generating_gave(
    generation: tuple[list[list[int]], FinishReason],
    kind: RequestOutputKind,
    stops: list[str],
    include: bool,
    special: bool,
) -> None:
    steps, reason = generation
    params = {
        "stop": stops,
        "include_stop_str_in_output": include,
        "skip_special_tokens": special,
    }
    desk = Desk()
    first, first_queue = make("first", RequestOutputKind.FINAL_ONLY, **params)
    desk.lead(first, first_queue)
    for index, step in enumerate(steps):
        desk.emit("first", step, reason if index == len(steps) - 1 else None)
    (stored,) = desk.finished
    assert Reader(kind, first_queue).end is None

    async def replay() -> Reader:
        again, queue = make("again", kind, **params)
        reader = Reader(kind, queue)
        desk.replayer.replay(again, "p", queue, stored.token_ids, stored.ending, "w")
        for _ in range(len(stored.token_ids) + 2):
            reader.take()
            await asyncio.sleep(0)
        return reader

    reader = asyncio.run(replay())
    assert reader.result == reference(steps, reason, kind, params)
    if kind is not RequestOutputKind.FINAL_ONLY and len(stored.token_ids) > 3:
        assert reader.pieces > 1
    assert desk.processor.request_states == {}
    assert desk.errors.counts() == {}


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
    assert not desk.flights.join(b"k", *_late())


def _late() -> tuple[EngineCoreRequest, str, RequestOutputCollector]:
    request, queue = make("late", RequestOutputKind.DELTA)
    return request, "p", queue


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
    assert not desk.flights.join(b"k", *_late())


async def test_an_aborted_replay_stops_and_the_engine_is_not_asked() -> None:
    desk = Desk()
    request, queue = make("hit", RequestOutputKind.DELTA)
    ending = Ending(FinishReason.LENGTH, None)
    desk.replayer.replay(request, "p", queue, list(range(1, 90)), ending, None)
    assert desk.processor.has_request("hit")
    assert desk.processor.abort_requests(["hit"], internal=True) == []
    await asyncio.sleep(0)
    desk.replayer.close()
    assert desk.processor.request_states == {}
    output = await queue.get()
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"


def test_a_recorded_request_is_not_followed_unless_it_may_be() -> None:
    desk = Desk()
    desk.flights.lead(None, "leader", watcher=desk)
    assert not desk.flights.join(b"k", *_late())


def fail(*_args: Any, **_kwargs: Any) -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_that_fails_before_its_first_token_was_never_there(
    kind: RequestOutputKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk()
    monkeypatch.setattr(desk.replayer._feeder, "feed", fail)
    request, queue = make("hit", kind)
    ending = Ending(FinishReason.LENGTH, None)
    assert not desk.replayer.replay(request, "p", queue, [1, 2], ending, None)
    assert desk.errors.counts() == {"replay": 1}
    assert desk.processor.request_states == {}
    assert queue.get_nowait() is None
    # The engine's turn, as if nothing had been tried.
    desk.processor.add_request(request, "p", None, 0, queue)
    desk.emit("hit", [5, 6], FinishReason.LENGTH)
    reader = Reader(kind, queue)
    reader.take()
    assert reader.token_ids == [5, 6]


def test_a_replay_that_fails_once_its_last_token_is_out_has_succeeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where vLLM's tracing fails, which comes after the output."""
    desk = Desk()
    monkeypatch.setattr(desk.processor, "_update_stats_from_finished", fail)
    request, queue = make("hit", RequestOutputKind.FINAL_ONLY)
    assert desk.replayer.replay(request, "p", queue, [5, 6], Ending(FinishReason.STOP, None), None)
    output = queue.get_nowait()
    assert output is not None
    assert list(output.outputs[0].token_ids) == [5, 6]
    assert desk.processor.request_states == {}


async def test_a_replay_that_fails_on_its_way_tells_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    request, queue = make("hit", RequestOutputKind.DELTA)
    ending = Ending(FinishReason.LENGTH, None)
    assert desk.replayer.replay(request, "p", queue, list(range(1, 30)), ending, None)
    monkeypatch.setattr(desk.replayer._feeder, "feed", fail)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="broken"):
        await queue.get()
    assert desk.processor.request_states == {}


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
    request, prompt, queue = _late()
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
