"""Has the engine verify a stored answer in one prefill, and goes on from where it disagrees.

The engine is not given a request itself but a *check*: prompt and stored answer as one prompt, with
prompt logprobs, which tell at each position whether the stored token is the most probable one. Of
what comes back, the verified tokens are emitted as the request's first step, or where they are many
as several, one in each turn of the event loop. If they do not end it,
the engine is given the request with them as part of its prompt, which is in its prefix cache, and
generates the rest. So whatever the stored answer says, the request gets what the engine would
generate: a wrong one costs a longer prefill.
"""

import asyncio
import copy
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.metrics.stats import IterationStats, PrefillStats

from reprise.engine_ext.compat.patches import Feature
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.request_hints import RequestHints, attach_hints, read_hints
from reprise.engine_ext.outputs.loop_turns import TOKENS_AT_ONCE, LoopTurns
from reprise.engine_ext.outputs.verdict import TOP_LOGPROBS, Verdict, end_of, num_verified

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import (
        OutputProcessor,
        OutputProcessorOutput,
        RequestOutputCollector,
    )

_CHECK_SUFFIX = "-reprise-check"
_UNFINISHED = frozenset({FinishReason.ABORT, FinishReason.ERROR})


class _Check(NamedTuple):
    request: "EngineCoreRequest"
    token_ids: list[int]
    on_verdict: Callable[[Verdict], None]


class VerifiedReplays:
    """Stands between the engine's outputs and all else that reads them. Event loop only.

    Args:
        processor: Takes the place of `add_request`, `process_outputs` and `abort_requests` on this
            one, outermost.
        submit: Gives the engine a request.
        is_led: Whether others follow a request, or it is recorded.
        on_failure: Called with the id of a request that the engine could not be given, and why.
        max_model_len: Of the engine.
        breaks_ties: Whether equal logprobs mean equal logits, see `num_verified`.
        turns: Of the event loop, for answers of many tokens.
        errors: Counts what goes wrong here.
    """

    def __init__(
        self,
        processor: "OutputProcessor",
        *,
        submit: "Callable[[EngineCoreRequest], Awaitable[None]]",
        is_led: Callable[[str], bool],
        on_failure: Callable[[str, Exception], None],
        max_model_len: int,
        breaks_ties: bool,
        turns: LoopTurns,
        errors: ErrorCounter,
    ) -> None:
        self._processor, self._turns = processor, turns
        self._submit, self._is_led, self._on_failure = submit, is_led, on_failure
        self._max_model_len, self._breaks_ties, self._errors = max_model_len, breaks_ties, errors
        own = registry.apply_to(processor, Feature.VERIFIED_REPLAY, self)
        self._process_outputs = own["process_outputs"]
        self._abort_requests = own["abort_requests"]
        self._add_request = own["add_request"]
        self._checks: dict[str, _Check] = {}
        """By the id of the check."""
        self._check_of: dict[str, str] = {}
        """From requests to their checks."""
        self._waiting: dict[str, EngineCoreRequest] = {}
        """What is about to be given to the engine after a check."""
        self._going_on: set[str] = set()
        """Requests with verified tokens whose next output is the first that is generated."""
        self._emitting: set[str] = set()
        """Requests with verified tokens that were not emitted yet."""
        self._unlogged: list[IterationStats] = []
        """Of tokens that were emitted after their step."""

    def __len__(self) -> int:
        return len(self._checks)

    def begin(
        self,
        request: "EngineCoreRequest",
        token_ids: Sequence[int],
        *,
        on_verdict: Callable[[Verdict], None],
    ) -> "EngineCoreRequest":
        """Return what vLLM's client is to be given in place of a request.

        Args:
            request: A verifiable one, which no one has been given yet.
            token_ids: [n] of the stored answer; with the prompt at most `max_model_len` - 1.
            on_verdict: Called before the first output.
        """
        # Of no client's choice: another request of this id would be taken for the one checked.
        check_id = f"{request.request_id}{_CHECK_SUFFIX}-{secrets.token_hex(8)}"
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=TOP_LOGPROBS,
            # What is cached of the prompt need not be computed; see `num_verified`.
            skip_reading_prefix_cache=False,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        attach_hints(params, RequestHints(drafts=False, store=False))
        check = msgspec.structs.replace(
            request,
            request_id=check_id,
            prompt_token_ids=[*(request.prompt_token_ids or ()), *token_ids],
            sampling_params=params,
        )
        self._checks[check_id] = _Check(request, list(token_ids), on_verdict)
        self._check_of[request.request_id] = check_id
        return check

    def forget(self, request_id: str) -> None:
        """Drop the check of a request that is not under way after all."""
        self._checks.pop(self._check_of.pop(request_id, ""), None)

    def close(self) -> None:
        """Give the engine nothing more."""
        self._waiting.clear()

    def add_request(
        self,
        request: "EngineCoreRequest",
        prompt: str | None,
        parent_req: Any = None,
        request_index: int = 0,
        queue: "RequestOutputCollector | None" = None,
    ) -> None:
        """Call what adds requests: of a check, its request."""
        check = self._checks.get(request.request_id)
        own = request if check is None else check.request
        self._add_request(own, prompt, parent_req, request_index, queue)

    def process_outputs(
        self,
        engine_core_outputs: list[EngineCoreOutput],
        engine_core_timestamp: float | None = None,
        iteration_stats: "IterationStats | None" = None,
        weight_version: str | None = None,
    ) -> "OutputProcessorOutput":
        """Call what processes outputs, with those of checks as their requests' own."""
        verified: list[tuple[_Check, Verdict]] = []
        if self._checks or self._going_on:
            replaced = (self._replace(output, verified) for output in engine_core_outputs)
            engine_core_outputs = [output for output in replaced if output is not None]
        if iteration_stats is not None:
            self._add_unlogged(iteration_stats)
        result = self._process_outputs(
            engine_core_outputs, engine_core_timestamp, iteration_stats, weight_version
        )
        for check, verdict in verified:
            try:
                if verdict.num_tokens > TOKENS_AT_ONCE:
                    self._emit_rest(check, verdict, result, weight_version)
                else:
                    self._go_on(check, verdict, result)
            except Exception as error:
                self._errors.record("verified_replay", error)
                self._on_failure(check.request.request_id, error)
        return result

    def _emit_rest(
        self,
        check: _Check,
        verdict: Verdict,
        result: "OutputProcessorOutput",
        weight_version: str | None,
    ) -> None:
        """Emit what follows the first tokens of many, unless a stop string ended them."""
        request_id = check.request.request_id
        if request_id in result.reqs_to_abort:
            result.reqs_to_abort.remove(request_id)
        else:
            self._emitting.add(request_id)
            self._turns.start(self._emit_pieces(check, verdict, weight_version))

    async def _emit_pieces(
        self, check: _Check, verdict: Verdict, weight_version: str | None
    ) -> None:
        request_id = check.request.request_id
        try:
            for start in range(TOKENS_AT_ONCE, verdict.num_tokens, TOKENS_AT_ONCE):
                async with self._turns.one_piece:
                    await asyncio.sleep(0)
                    if request_id not in self._emitting or not self._has_clients(request_id):
                        return  # aborted meanwhile, or ended by a stop string
                    result = self._emit(check, verdict, start, weight_version)
            self._go_on(check, verdict, result)
        except Exception as error:
            self._errors.record("verified_replay", error)
            self._on_failure(request_id, error)
        finally:
            self._emitting.discard(request_id)

    def _emit(
        self, check: _Check, verdict: Verdict, start: int, weight_version: str | None
    ) -> "OutputProcessorOutput":
        """Emit one piece as a step of its own, which is logged with the next one of the engine."""
        statistics = IterationStats() if self._processor.log_stats else None
        result = self._process_outputs(
            [_piece_of(check, verdict, start)], time.monotonic(), statistics, weight_version
        )
        if statistics is not None:
            self._unlogged.append(statistics)
        return result

    def _add_unlogged(self, statistics: "IterationStats") -> None:
        """Log the tokens and the ends of requests that came after their step; its latency is one,
        however many tokens came of it."""
        for unlogged in self._unlogged:
            statistics.num_generation_tokens += unlogged.num_generation_tokens
            statistics.finished_requests += unlogged.finished_requests
            statistics.max_num_generation_tokens_iter += unlogged.max_num_generation_tokens_iter
            statistics.n_params_iter += unlogged.n_params_iter
        self._unlogged.clear()

    def _has_clients(self, request_id: str) -> bool:
        return self._processor.has_request(request_id) or self._is_led(request_id)

    def abort_requests(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        """Call what aborts requests; return what the engine has to stop, checks among it."""
        return [
            known
            for request_id in self._abort_requests(request_ids, internal)
            if (known := self._known_as(request_id)) is not None
        ]

    def _known_as(self, request_id: str) -> str | None:
        """Forget an aborted request; return its id in the engine, None: it is not there."""
        self._going_on.discard(request_id)
        check_id = self._check_of.pop(request_id, None)
        if check_id is not None:
            self._checks.pop(check_id, None)
            return check_id
        if request_id in self._emitting:
            self._emitting.discard(request_id)
            return None
        return None if self._waiting.pop(request_id, None) is not None else request_id

    def _replace(
        self, output: EngineCoreOutput, verified: list[tuple[_Check, Verdict]]
    ) -> EngineCoreOutput | None:
        """Return what stands for an output of the engine; None: nothing."""
        if output.request_id in self._going_on:
            self._going_on.discard(output.request_id)
            # Its time in the queue and its prefill were the check's.
            return msgspec.structs.replace(output, events=None, prefill_stats=None)
        check = self._checks.pop(output.request_id, None)
        if check is None:
            return output
        request_id = check.request.request_id
        self._check_of.pop(request_id, None)
        if output.finish_reason in _UNFINISHED or getattr(output, "error", None) is not None:
            return msgspec.structs.replace(
                output, request_id=request_id, new_token_ids=[], new_prompt_logprobs_tensors=None
            )
        verdict = self._verdict(check, output)
        verified.append((check, verdict))
        if not verdict.num_tokens:
            return None
        return msgspec.structs.replace(
            _piece_of(check, verdict, 0),
            events=output.events,
            prefill_stats=_prefill_of(check, output),
            num_nans_in_logits=output.num_nans_in_logits,
        )

    def _verdict(self, check: _Check, output: EngineCoreOutput) -> Verdict:
        verdict = Verdict(0, None)
        try:
            cached = output.prefill_stats.num_cached_tokens if output.prefill_stats else None
            if output.new_prompt_logprobs_tensors is not None and cached is not None:
                count = num_verified(
                    output.new_prompt_logprobs_tensors,
                    num_prompt_tokens=len(check.request.prompt_token_ids or ()),
                    token_ids=check.token_ids,
                    num_cached_tokens=cached,
                    breaks_ties=self._breaks_ties,
                )
                verdict = end_of(check.request, check.token_ids[:count], self._max_model_len)
        except Exception as error:
            self._errors.record("verified_replay", error)
        try:
            check.on_verdict(verdict)
        except Exception as error:
            self._errors.record("verified_replay", error)
        return verdict

    def _go_on(self, check: _Check, verdict: Verdict, result: "OutputProcessorOutput") -> None:
        """Have the engine generate what the verified tokens do not end."""
        request_id = check.request.request_id
        if verdict.ending is not None:
            return
        if request_id in result.reqs_to_abort:
            # A stop string ended it, and the engine does not know it.
            result.reqs_to_abort.remove(request_id)
            return
        if not self._has_clients(request_id):
            return
        num_tokens = verdict.num_tokens
        if num_tokens:
            self._going_on.add(request_id)
        self._waiting[request_id] = rest_of(check.request, check.token_ids[:num_tokens])
        self._turns.start(self._send(request_id))

    async def _send(self, request_id: str) -> None:
        request = self._waiting.pop(request_id, None)
        if request is None:
            return  # aborted meanwhile
        try:
            await self._submit(request)
        except Exception as error:
            self._errors.record("verified_replay", error)
            self._going_on.discard(request_id)
            self._on_failure(request_id, error)


def rest_of(request: "EngineCoreRequest", token_ids: Sequence[int]) -> "EngineCoreRequest":
    """Return a request for what follows these tokens of its answer."""
    if not token_ids:
        return request
    assert request.sampling_params is not None
    params = copy.copy(request.sampling_params)
    assert params.max_tokens is not None
    params.max_tokens -= len(token_ids)
    # Of its own the worker would learn the rest as an answer to the longer prompt.
    attach_hints(params, msgspec.structs.replace(read_hints(params), store=False))
    return msgspec.structs.replace(
        request,
        prompt_token_ids=[*(request.prompt_token_ids or ()), *token_ids],
        sampling_params=params,
    )


def _piece_of(check: _Check, verdict: Verdict, start: int) -> EngineCoreOutput:
    """Return an output with the verified tokens from `start` on, as many as are emitted at once."""
    stop = min(start + TOKENS_AT_ONCE, verdict.num_tokens)
    ending = verdict.ending if stop == verdict.num_tokens else None
    return EngineCoreOutput(
        request_id=check.request.request_id,
        new_token_ids=check.token_ids[start:stop],
        finish_reason=ending.finish_reason if ending is not None else None,
        stop_reason=ending.stop_reason if ending is not None else None,
        trace_headers=check.request.trace_headers,
    )


def _prefill_of(check: _Check, output: EngineCoreOutput) -> PrefillStats | None:
    """Return what the prefill cost, of the prompt alone: the answer is none of it."""
    whole: Any = output.prefill_stats
    if whole is None:
        return None
    num_prompt_tokens = len(check.request.prompt_token_ids or ())
    cached = min(whole.num_cached_tokens, num_prompt_tokens)
    return PrefillStats(
        num_prompt_tokens=num_prompt_tokens,
        num_computed_tokens=num_prompt_tokens - cached,
        num_cached_tokens=cached,
        num_local_cached_tokens=cached,
        num_cache_creation_tokens=min(whole.num_cache_creation_tokens, num_prompt_tokens - cached),
    )
