"""Replays stored token ids as a request's output, through vLLM's own output processor.

A request that is answered without the engine gets the same `RequestState` as any other: vLLM's
code detokenises, finds stop strings and shapes the outputs (`DELTA`, `CUMULATIVE`, `FINAL_ONLY`),
so that only its speed distinguishes a replayed answer from a generated one.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.metrics.stats import IterationStats, PrefillStats

from reprise.engine_ext.compat.engine_state import mark_of, set_mark, set_scheduled
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.outputs.loop_turns import TOKENS_AT_ONCE, LoopTurns
from reprise.engine_ext.outputs.one_token_outputs import empty

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import (
        OutputProcessor,
        RequestOutputCollector,
        RequestState,
    )

_TRACE_HEADERS = "trace_headers"


class Ending(NamedTuple):
    """How an answer ended."""

    finish_reason: FinishReason
    stop_reason: int | str | None

    @property
    def is_stop_string(self) -> bool:
        """Whether the detokenizer ended it, not the engine."""
        return self.finish_reason is FinishReason.STOP and isinstance(self.stop_reason, str)


class Feeder:
    """Passes tokens to requests as if the engine had just emitted them."""

    def __init__(self, processor: "OutputProcessor") -> None:
        """Made before anything takes the place of the processor's methods."""
        self._processor = processor
        self._process_outputs = processor.process_outputs

    def begin(self, request: "EngineCoreRequest") -> None:
        """Take in a request that the processor was just given, for its trace and its times: the
        engine, which would tell them, never hears of it."""
        state = self._processor.request_states[request.request_id]
        set_mark(state, _TRACE_HEADERS, request.trace_headers)
        if state.stats is not None:
            set_scheduled(state.stats, time.monotonic())

    def feed(
        self,
        request_id: str,
        token_ids: Sequence[int],
        *,
        ending: Ending | None = None,
        prefill_stats: PrefillStats | None = None,
        weight_version: str | None = None,
    ) -> None:
        """Pass on one step's tokens.

        Args:
            request_id: a request that the processor knows and the engine does not.
            token_ids: [n] what it emits now.
            ending: None: more is to come. A stop string is left to the detokenizer to find.
            prefill_stats: with the first tokens, what the prefill cost.
            weight_version: the label of the weights that these tokens came from.
        """
        state = self._processor.request_states.get(request_id)
        by_engine = ending if ending is not None and not ending.is_stop_string else None
        output = EngineCoreOutput(
            request_id=request_id,
            new_token_ids=list(token_ids),
            finish_reason=by_engine.finish_reason if by_engine else None,
            stop_reason=by_engine.stop_reason if by_engine else None,
            prefill_stats=prefill_stats,
            trace_headers=mark_of(state, _TRACE_HEADERS),
        )
        # vLLM's metrics count what the engine does: these statistics reach the request's own
        # metrics and trace, and are then dropped.
        statistics = IterationStats() if self._processor.log_stats else None
        self._process_outputs([output], time.monotonic(), statistics, weight_version)


class Replayer:
    """Answers requests from stored token ids; in pieces for streams, and where they are many."""

    def __init__(
        self,
        processor: "OutputProcessor",
        *,
        chunk_tokens: int,
        errors: ErrorCounter,
    ) -> None:
        self._processor = processor
        self._feeder = Feeder(processor)
        self._abort_requests = processor.abort_requests
        self._chunk_tokens = chunk_tokens
        self._errors = errors
        self.turns = LoopTurns()
        """Of all that feeds requests with many tokens at once."""
        self._live: set[str] = set()

    def replay(
        self,
        request: "EngineCoreRequest",
        prompt: str | None,
        queue: "RequestOutputCollector",
        token_ids: list[int],
        ending: Ending,
        weight_version: str | None,
    ) -> bool:
        """Answer `request` with `token_ids` [n]; an answer of several pieces goes on in a task.

        Returns:
            False: it failed before anything of it reached the client, and the request is unknown
            again: the engine may generate for it.
        """
        assert request.sampling_params is not None
        assert request.prompt_token_ids is not None
        streams = request.sampling_params.output_kind is not RequestOutputKind.FINAL_ONLY
        step = self._chunk_tokens if streams else TOKENS_AT_ONCE
        chunks = [token_ids[start : start + step] for start in range(0, len(token_ids), step)]
        num_prompt_tokens = len(request.prompt_token_ids)
        prefill = PrefillStats(
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=num_prompt_tokens,
            num_local_cached_tokens=num_prompt_tokens,
        )
        request_id = request.request_id
        first, rest = (chunks[0], chunks[1:]) if chunks else ([], [])
        try:
            self._live.add(request_id)
            self._processor.add_request(request, prompt, None, 0, queue)
            self._feeder.begin(request)
            self._feed(request_id, first, None if rest else ending, prefill, weight_version)
        except Exception as error:
            self._errors.record("replay", error)
            if not self._processor.has_request(request_id) and queue.output is not None:
                # All of it is on its way already.
                self._live.discard(request_id)
                return True
            self.withdraw(request_id, queue)
            return False
        if rest:
            self.turns.start(self._go_on(request_id, rest, ending, weight_version, streams=streams))
        return True

    @property
    def live_ids(self) -> frozenset[str]:
        """Of requests that are being answered."""
        return frozenset(self._live)

    def fail(self, state: "RequestState", error: Exception) -> None:
        """End a request that the processor knows and the engine does not: its client gets `error`
        after the outputs so far."""
        # Without its queue no last output is made, which would look like an end.
        queue, state.queue = state.queue, None
        self._abort_requests([state.request_id], internal=True)
        if queue is not None:
            queue.put(error)

    def withdraw(self, request_id: str, queue: "RequestOutputCollector") -> None:
        """Remove a request, of which its client has seen nothing, from the processor."""
        self._live.discard(request_id)
        state = self._processor.request_states.get(request_id)
        if state is not None:
            # Without its queue no last output is made.
            state.queue = None
            self._abort_requests([request_id], internal=True)
        empty(queue)

    def forget(self, request_id: str) -> bool:
        """Drop an aborted request; return whether it was one of these, unknown to the engine."""
        if request_id not in self._live:
            return False
        self._live.discard(request_id)
        return True

    def close(self) -> None:
        """Stop replays in progress."""
        self.turns.close()

    async def _go_on(
        self,
        request_id: str,
        chunks: list[list[int]],
        ending: Ending,
        weight_version: str | None,
        *,
        streams: bool,
    ) -> None:
        for index, chunk in enumerate(chunks):
            last = ending if index == len(chunks) - 1 else None
            # Let the client of a stream take the piece before. Where it is slower, vLLM's own
            # collector merges what has piled up.
            async with nullcontext() if streams else self.turns.one_piece:
                await asyncio.sleep(0)
                if request_id not in self._live:
                    return
                state = self._processor.request_states.get(request_id)
                try:
                    self._feed(request_id, chunk, last, None, weight_version)
                except Exception as error:
                    self._errors.record("replay", error)
                    self._live.discard(request_id)
                    # One that is over by now has had all of it.
                    if state is not None and self._processor.has_request(request_id):
                        self.fail(state, error)

    def _feed(
        self,
        request_id: str,
        token_ids: list[int],
        ending: Ending | None,
        prefill: PrefillStats | None,
        weight_version: str | None,
    ) -> None:
        """Feed one piece.

        Raises:
            Exception: vLLM's output processor failed, or did not take the end for one.
        """
        if self._processor.has_request(request_id):
            self._feeder.feed(
                request_id,
                token_ids,
                ending=ending,
                prefill_stats=prefill,
                weight_version=weight_version,
            )
            if ending is not None and self._processor.has_request(request_id):
                raise RuntimeError(f"the replay of {request_id} did not end: {ending}")
        if not self._processor.has_request(request_id):
            self._live.discard(request_id)
