"""Replays against what vLLM's own output processor makes of the same tokens."""

import asyncio
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import FinishReason

from reprise.engine_ext.outputs import replay
from reprise.engine_ext.outputs.loop_turns import TOKENS_AT_ONCE
from reprise.engine_ext.outputs.replay import Ending
from reprise.tests.engine_ext.outputs.flight_desk import (
    KINDS,
    STOPS,
    TOKENIZER,
    Desk,
    Reader,
    fail,
    generations,
    make,
    reference,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    generation=generations(),
    kind=st.sampled_from(KINDS),
    stops=STOPS,
    include=st.booleans(),
    special=st.booleans(),
    at_once=st.sampled_from([2, 256]),
)
def test_a_replay_gives_what_generating_gave(
    generation: tuple[list[list[int]], FinishReason],
    kind: RequestOutputKind,
    stops: list[str],
    include: bool,
    special: bool,
    at_once: int,
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

    async def replayed() -> Reader:
        again, queue = make("again", kind, **params)
        reader = Reader(kind, queue)
        with mock.patch.object(replay, "TOKENS_AT_ONCE", at_once):
            desk.replayer.replay(again, "p", queue, stored.token_ids, stored.ending, "w")
        for _ in range(len(stored.token_ids) + 2):
            reader.take()
            await asyncio.sleep(0)
        return reader

    reader = asyncio.run(replayed())
    assert reader.result == reference(steps, reason, kind, params)
    if kind is not RequestOutputKind.FINAL_ONLY and len(stored.token_ids) > 3:
        assert reader.pieces > 1
    assert desk.processor.request_states == {}
    assert desk.errors.counts() == {}


async def test_of_long_answers_one_piece_is_made_into_text_in_a_turn_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    token_ids = TOKENIZER.encode("ab" * 600)
    feed = desk.replayer._feeder.feed
    pieces: list[tuple[int, int]] = []
    turn = 0

    def seen(request_id: str, piece: list[int], **others: Any) -> None:
        pieces.append((turn, len(piece)))
        feed(request_id, piece, **others)

    monkeypatch.setattr(desk.replayer._feeder, "feed", seen)
    queues = []
    for name in ("one", "two"):
        request, queue = make(name, RequestOutputKind.FINAL_ONLY)
        ending = Ending(FinishReason.LENGTH, None)
        assert desk.replayer.replay(request, "p", queue, token_ids, ending, "w")
        queues.append(queue)
    assert desk.processor.has_request("one")
    for turn in range(1, 40):  # noqa: B007 - see `seen`
        await asyncio.sleep(0)
    assert max(num_tokens for _, num_tokens in pieces) == TOKENS_AT_ONCE
    turns = [turn for turn, _ in pieces[2:]]
    assert len(turns) == len(set(turns)) == 2 * (len(token_ids) // TOKENS_AT_ONCE)
    for queue in queues:
        output = await queue.get()
        assert list(output.outputs[0].token_ids) == token_ids  # type: ignore[union-attr]
        assert output.outputs[0].text == "ab" * 600  # type: ignore[union-attr]
    assert desk.errors.counts() == {}


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


@pytest.mark.parametrize("num_tokens", [2, 600])
async def test_a_replay_that_fails_once_its_last_token_is_out_has_succeeded(
    monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    """As where vLLM's tracing fails, which comes after the output."""
    desk = Desk()
    monkeypatch.setattr(desk.processor, "_update_stats_from_finished", fail)
    request, queue = make("hit", RequestOutputKind.FINAL_ONLY)
    token_ids, ending = [5] * num_tokens, Ending(FinishReason.LENGTH, None)
    assert desk.replayer.replay(request, "p", queue, token_ids, ending, None)
    output = await queue.get()
    assert list(output.outputs[0].token_ids) == token_ids  # type: ignore[union-attr]
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
