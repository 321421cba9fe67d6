"""Verified replay with vLLM's output processor and an engine that is played."""

import asyncio
from typing import Any

import pytest
import torch
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.metrics.stats import IterationStats, PrefillStats
from vllm.v1.outputs import LogprobsTensors

from reprise.engine_ext.core.request_hints import read_hints
from reprise.engine_ext.outputs.loop_turns import TOKENS_AT_ONCE
from reprise.engine_ext.outputs.verdict import Verdict, num_verified
from reprise.engine_ext.outputs.verified_replay import VerifiedReplays
from reprise.tests.engine_ext.outputs.flight_desk import EOS, TOKENIZER, Desk, Reader, make

DELTA = RequestOutputKind.DELTA
ANSWER = TOKENIZER.encode("answer")
OTHER = 9


def rows(
    token_ids: list[int],
    *,
    num_prompt: int,
    wrong: tuple[int, ...] = (),
    tied: tuple[int, ...] = (),
    rival: int = OTHER,
    left_out: int = 0,
) -> LogprobsTensors:
    """What the engine says of prompt and answer: which places of the answer are wrong or tied."""
    all_ids = [1] * (num_prompt - 1) + token_ids
    ids, values, ranks = [], [], []
    for place, token_id in enumerate(all_ids, 1 - num_prompt):
        is_tied, is_wrong = place in tied, place in wrong
        first = rival if is_tied or is_wrong else token_id
        second = token_id if is_tied else OTHER + 1
        ids.append([token_id, first, second])
        best, own = -0.5, -1.5 if is_wrong else -0.5
        values.append([own, best, -0.5 if is_tied else -2.5])
        ranks.append(2 if is_tied or is_wrong else 1)
    tensors = (torch.tensor(each)[left_out:] for each in (ids, values, ranks))
    return LogprobsTensors(*tensors)


class Engine(Desk):
    """A desk whose requests are verified."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[EngineCoreRequest] = []
        self.failed: list[str] = []
        self.verdicts: list[Verdict] = []
        self.fails = False
        self.replays = VerifiedReplays(
            self.processor,
            submit=self._submit,
            is_led=lambda request_id: self.flights.watcher_of(request_id) is not None,
            on_failure=lambda request_id, _: self.failed.append(request_id),
            max_model_len=600,
            breaks_ties=True,
            turns=self.replayer.turns,
            errors=self.errors,
        )

    async def _submit(self, request: EngineCoreRequest) -> None:
        if self.fails:
            raise RuntimeError("no engine")
        self.sent.append(request)

    def verify(
        self, token_ids: list[int], name: str = "r", **params: Any
    ) -> tuple[EngineCoreRequest, EngineCoreRequest, Reader]:
        request, queue = make(name, DELTA, **params)
        self.flights.lead(b"k", request.request_id, watcher=self)
        check = self.replays.begin(request, token_ids, on_verdict=self.verdicts.append)
        self.processor.add_request(check, "p", None, 0, queue)
        assert self.processor.has_request(name)
        return request, check, Reader(DELTA, queue)

    def says(
        self, check: EngineCoreRequest, num_answer: int, *, cached: int = 0, **said: Any
    ) -> list[str]:
        """The check's only output."""
        assert check.prompt_token_ids is not None
        num_prompt = len(check.prompt_token_ids) - num_answer
        output = EngineCoreOutput(
            request_id=check.request_id,
            new_token_ids=[77],
            finish_reason=FinishReason.LENGTH,
            new_prompt_logprobs_tensors=rows(
                check.prompt_token_ids[num_prompt:], num_prompt=num_prompt, **said
            ),
            prefill_stats=PrefillStats(
                num_prompt_tokens=len(check.prompt_token_ids),
                num_cached_tokens=cached,
                num_computed_tokens=len(check.prompt_token_ids) - cached,
            ),
        )
        self.statistics = IterationStats()
        return self.processor.process_outputs([output], 1.0, self.statistics, "w").reqs_to_abort


async def test_an_answer_that_ends_is_emitted_whole_and_the_engine_gets_nothing_more() -> None:
    engine = Engine()
    request, check, reader = engine.verify([*ANSWER, EOS])
    request.sampling_params.update_from_generation_config({}, EOS)  # type: ignore[union-attr]
    assert check.request_id != request.request_id
    assert check.sampling_params is not None
    assert check.sampling_params.prompt_logprobs is not None
    assert not read_hints(check.sampling_params).store
    engine.says(check, len(ANSWER) + 1)
    await asyncio.sleep(0)
    reader.take()
    assert reader.result == ("answer", [*ANSWER, EOS], ("stop", None))
    assert engine.sent == []
    (finished,) = engine.finished
    assert finished.token_ids == [*ANSWER, EOS]
    prompt = len(request.prompt_token_ids or ())
    assert engine.statistics.num_prompt_tokens == prompt
    assert engine.statistics.num_generation_tokens == len(ANSWER) + 1
    assert len(engine.statistics.finished_requests) == 1
    assert engine.errors.counts() == {}


async def test_from_the_first_disagreement_on_the_engine_generates() -> None:
    engine = Engine()
    request, check, reader = engine.verify(ANSWER, max_tokens=50)
    engine.says(check, len(ANSWER), wrong=(2, 4))
    reader.take()
    assert reader.token_ids == ANSWER[:2]
    assert engine.verdicts == [Verdict(2, None)]
    await asyncio.sleep(0)
    (rest,) = engine.sent
    assert rest.request_id == request.request_id
    assert rest.prompt_token_ids == [*(request.prompt_token_ids or ()), *ANSWER[:2]]
    assert rest.sampling_params is not None
    assert rest.sampling_params.max_tokens == 48
    assert request.sampling_params is not None
    assert request.sampling_params.max_tokens == 50
    tail = TOKENIZER.encode("xyz")
    engine.emit("r", tail[:1])
    engine.emit("r", tail[1:], FinishReason.LENGTH)
    reader.take()
    assert reader.token_ids == [*ANSWER[:2], *tail]
    assert [one.token_ids for one in engine.finished] == [[*ANSWER[:2], *tail]]


async def test_nothing_right_is_the_request_as_it_was() -> None:
    engine = Engine()
    request, check, reader = engine.verify(ANSWER)
    engine.says(check, len(ANSWER), wrong=(0,))
    await asyncio.sleep(0)
    assert engine.sent == [request]
    reader.take()
    assert reader.pieces == 0
    assert engine.begun == 0


async def test_the_limits_of_the_request_end_it_not_those_of_the_stored_answer() -> None:
    engine = Engine()
    _, check, reader = engine.verify(ANSWER[:4], max_tokens=4)
    engine.says(check, 4)
    reader.take()
    assert reader.result == ("answ", ANSWER[:4], ("length", None))
    _, check, reader = engine.verify(ANSWER, name="s", stop_token_ids=[ANSWER[2]])
    engine.says(check, len(ANSWER))
    reader.take()
    assert reader.token_ids == ANSWER[:3]
    assert reader.end == ("stop", ANSWER[2])
    _, check, reader = engine.verify(ANSWER, name="t", stop=["sw"])
    assert engine.says(check, len(ANSWER)) == []
    reader.take()
    assert reader.result[0] == "an"
    await asyncio.sleep(0)
    assert engine.sent == []


async def test_aborts_stop_whatever_of_it_the_engine_has() -> None:
    engine = Engine()
    _, check, _ = engine.verify(ANSWER)
    assert engine.processor.abort_requests(["r"], internal=True) == [check.request_id]
    engine.says(check, len(ANSWER))
    await asyncio.sleep(0)
    assert engine.sent == []
    _, check, _ = engine.verify(ANSWER, name="s")
    engine.says(check, len(ANSWER), wrong=(3,))
    assert engine.processor.abort_requests(["s"], internal=True) == []
    await asyncio.sleep(0)
    assert engine.sent == []
    _, check, _ = engine.verify(ANSWER, name="t")
    engine.says(check, len(ANSWER), wrong=(3,))
    await asyncio.sleep(0)
    assert engine.processor.abort_requests(["t"], internal=True) == ["t"]
    assert len(engine.replays) == 0
    assert len(engine.flights) == 0


async def test_no_request_has_the_id_of_a_check() -> None:
    """Ids may be the clients' choice, see `VLLM_DISABLE_REQUEST_ID_RANDOMIZATION`."""
    engine = Engine()
    _, check, reader = engine.verify(ANSWER)
    other, queue = make("r-reprise-check", DELTA)
    engine.processor.add_request(other, "p", None, 0, queue)
    assert engine.processor.request_states.keys() == {"r", "r-reprise-check"}
    assert Engine().verify(ANSWER)[1].request_id != check.request_id
    engine.says(check, len(ANSWER))
    reader.take()
    assert reader.text == "answer"


async def test_followers_get_what_is_verified_and_what_follows() -> None:
    engine = Engine()
    _, check, _ = engine.verify(ANSWER)
    follower, queue = make("f", DELTA)
    assert engine.flights.join(b"k", follower, "p", queue)
    assert engine.processor.abort_requests(["r"], internal=True) == []  # it has a follower
    engine.says(check, len(ANSWER), wrong=(3,))
    await asyncio.sleep(0)
    assert [one.request_id for one in engine.sent] == ["r"]
    engine.emit("r", TOKENIZER.encode("x"), FinishReason.LENGTH)
    reader = Reader(DELTA, queue)
    reader.take()
    assert reader.text == "ansx"


async def turn(times: int = 20) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@pytest.mark.parametrize("ends", [True, False])
async def test_many_tokens_are_emitted_in_pieces_while_the_loop_turns(ends: bool) -> None:
    engine = Engine()
    answer = TOKENIZER.encode("ab" * 260)
    stored = [*answer, EOS] if ends else answer
    request, check, reader = engine.verify(stored, max_tokens=580)
    request.sampling_params.update_from_generation_config({}, EOS)  # type: ignore[union-attr]
    engine.says(check, len(stored))
    reader.take()
    assert reader.token_ids == answer[:TOKENS_AT_ONCE]
    assert engine.sent == []
    await turn()
    reader.take()
    assert reader.token_ids == stored
    assert engine.verdicts[0].num_tokens == len(stored)
    logged = IterationStats()
    engine.processor.process_outputs([], 1.0, logged, "w")
    assert engine.statistics.num_generation_tokens == TOKENS_AT_ONCE
    assert logged.num_generation_tokens == len(stored) - TOKENS_AT_ONCE
    assert len(logged.finished_requests) == ends
    assert logged.max_num_generation_tokens_iter == ([len(stored)] if ends else [])
    assert logged.n_params_iter == ([1] if ends else [])
    assert logged.inter_token_latencies_iter == []
    if ends:
        assert reader.end == ("stop", None)
        assert engine.sent == []
    else:
        (rest,) = engine.sent
        assert rest.prompt_token_ids == [*(request.prompt_token_ids or ()), *answer]
        engine.emit("r", TOKENIZER.encode("x"), FinishReason.LENGTH)
        reader.take()
        assert reader.text == "ab" * 260 + "x"
    assert [one.token_ids for one in engine.finished] == [reader.token_ids]
    assert engine.processor.request_states == {}
    assert engine.errors.counts() == {}


@pytest.mark.parametrize("place", [100, 400])
async def test_a_stop_string_among_many_tokens_ends_them(place: int) -> None:
    engine = Engine()
    answer = TOKENIZER.encode("a" * place + "stop" + "b" * (500 - place))
    _, check, reader = engine.verify(answer, stop=["stop"])
    assert engine.says(check, len(answer)) == []
    await turn()
    reader.take()
    assert reader.text == "a" * place
    assert reader.end == ("stop", "stop")
    assert engine.sent == []
    assert len(engine.flights) == 0


async def test_an_abort_among_many_tokens_ends_them() -> None:
    engine = Engine()
    answer = TOKENIZER.encode("a" * 500)
    _, check, reader = engine.verify(answer)
    engine.says(check, len(answer))
    follower, queue = make("f", DELTA)
    assert engine.flights.join(b"k", follower, "p", queue)
    assert engine.processor.abort_requests(["r"], internal=True) == []
    await asyncio.sleep(0)
    assert engine.processor.abort_requests(["f"], internal=True) == []  # the engine has nothing
    await turn()
    assert engine.sent == []
    assert engine.processor.request_states == {}
    reader.take()
    assert reader.end == ("abort", None)


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
async def test_what_ends_the_check_ends_the_request(reason: FinishReason) -> None:
    engine = Engine()
    _, check, reader = engine.verify(ANSWER)
    engine.emit(check.request_id, [], reason)
    if reason is FinishReason.ABORT:
        reader.take()
        assert reader.end == ("abort", None)
    assert not engine.processor.has_request("r")
    assert engine.sent == []


async def test_an_engine_that_takes_nothing_more_fails_the_request() -> None:
    engine = Engine()
    engine.fails = True
    _, check, _ = engine.verify(ANSWER)
    engine.says(check, len(ANSWER), wrong=(3,))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert engine.failed == ["r"]


async def test_an_error_in_the_verdict_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    request, check, _ = engine.verify(ANSWER)

    def fail(*_: Any, **__: Any) -> int:
        raise RuntimeError("injected")

    monkeypatch.setattr("reprise.engine_ext.outputs.verified_replay.num_verified", fail)
    engine.says(check, len(ANSWER))
    await asyncio.sleep(0)
    assert engine.sent == [request]
    assert engine.errors.counts() == {"verified_replay": 1}


def count(token_ids: list[int], *, cached: int = 0, breaks_ties: bool = True, **said: Any) -> int:
    return num_verified(
        rows(token_ids, num_prompt=4, **said),
        num_prompt_tokens=4,
        token_ids=token_ids,
        num_cached_tokens=cached,
        breaks_ties=breaks_ties,
    )


def test_the_most_probable_tokens_are_verified_up_to_the_first_that_is_not() -> None:
    assert count([5, 6, 7]) == 3
    assert [count([5, 6, 7], wrong=(place,)) for place in range(3)] == [0, 1, 2]


def test_rows_of_what_was_cached_may_be_missing_but_not_the_first_of_the_answer() -> None:
    assert count([5, 6, 7], cached=3, left_out=3) == 3
    assert count([5, 6, 7], cached=2, left_out=0) == 3
    assert count([5, 6, 7], cached=4, left_out=4) == 0
    assert count([5, 6, 7], cached=4, left_out=0) == 0
    assert count([5, 6, 7], cached=0, left_out=5) == 0


def test_of_equal_ones_the_lowest_is_verified_where_equal_logprobs_are_equal_logits() -> None:
    assert count([5, 6, 7], tied=(1,), rival=OTHER) == 3
    assert count([5, 6, 7], tied=(1,), rival=3) == 1
    assert count([5, 6, 7], tied=(1,), rival=OTHER, breaks_ties=False) == 1


def test_rows_of_another_answer_verify_nothing() -> None:
    said = rows([5, 6, 8], num_prompt=4)
    verified = num_verified(
        said, num_prompt_tokens=4, token_ids=[5, 6, 7], num_cached_tokens=0, breaks_ties=True
    )
    assert verified == 0
