"""Emits streams that a parser of vLLM reads one token an output, as without drafts.

vLLM's tool and reasoning parsers see a stream as deltas, and many of them take one step a delta:
the name of a call, or a piece of its arguments, or the call's end. Without speculation a delta is
one token, and they keep up. A draft brings up to 17 tokens, a replay 16, and vLLM's collector joins
whatever a slow client has not fetched: names, ids or whole calls are then lost. So where a parser
may read a stream, what the engine emits in a step passes through vLLM's output processor token by
token, and the collector keeps the outputs apart.

Only streams (`DELTA`) are concerned, only in processes that have built such a parser, and not
`/v1/completions`, which knows no parsers. What it costs: an event per token, which is what the
same server sends without speculation.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.output_processor import OutputProcessorOutput, RequestOutputCollector

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.request.http_context import current_http_context

if TYPE_CHECKING:
    from vllm.outputs import PoolingRequestOutput, RequestOutput
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.metrics.stats import IterationStats

# Raw token streams, which another server's parser reads.
_PATHS_OF_FOREIGN_PARSERS = ("/inference/v1/generate",)
_PATHS_WITHOUT_PARSERS = ("/v1/completions",)


class _ParsersBuilt:
    """Records whether this process has built a parser of vLLM's, as with the server's app."""

    def __init__(self) -> None:
        self.any = False


_parsers_built = _ParsersBuilt()


def watch_parsers() -> None:
    """Learn of every parser that a server in this process is built with. Idempotent.

    vLLM's own server, Ray Serve and programs with a server app of their own all get them from
    `ParserManager.get_parser`, after the engine client is there.
    """
    registry.apply(Feature.ONE_TOKEN_OUTPUTS, _ParserHooks, role=Role.API_SERVER)


class _ParserHooks:
    """The hook of `Feature.ONE_TOKEN_OUTPUTS` in this process."""

    @staticmethod
    def get_parser(original: Callable[..., Any], cls: type, *args: Any, **kwargs: Any) -> Any:
        """Get a parser as vLLM does, and record that there is one."""
        parser = original(cls, *args, **kwargs)
        _parsers_built.any = _parsers_built.any or parser is not None
        return parser


def parser_may_read(request: "EngineCoreRequest") -> bool:
    """Return whether a parser may read the stream that answers this request."""
    params = request.sampling_params
    if params is None or params.output_kind is not RequestOutputKind.DELTA:
        return False
    http_context = current_http_context.get()
    path = http_context.path if http_context is not None else ""
    if path.endswith(_PATHS_OF_FOREIGN_PARSERS):
        return True
    return _parsers_built.any and not path.endswith(_PATHS_WITHOUT_PARSERS)


class OneTokenCollector(RequestOutputCollector):  # type: ignore[misc]
    """Collects outputs without merging them, in order, however slow the client."""

    later: "deque[RequestOutput | PoolingRequestOutput | Exception]"
    """What comes after `output`."""

    @classmethod
    def take_over(cls, queue: RequestOutputCollector) -> None:
        """Turn vLLM's collector into one of these: vLLM offers no choice of class."""
        if not isinstance(queue, cls):
            queue.__class__ = cls
            queue.later = deque()

    def put(self, output: "RequestOutput | PoolingRequestOutput | Exception") -> None:
        """Append an output."""
        if self.output is None:
            super().put(output)
        else:
            self.later.append(output)

    async def get(self) -> "RequestOutput | PoolingRequestOutput":
        """Wait for the oldest output and return it."""
        try:
            return await super().get()
        finally:
            self._move_up()

    def get_nowait(self) -> "RequestOutput | PoolingRequestOutput | None":
        """Return the oldest output; None: there is none."""
        try:
            return super().get_nowait()
        finally:
            self._move_up()

    def _move_up(self) -> None:
        if self.output is None and self.later:
            super().put(self.later.popleft())


def latest_output(
    queue: RequestOutputCollector,
) -> "RequestOutput | PoolingRequestOutput | Exception | None":
    """Return what was put into a collector last and not fetched yet."""
    if isinstance(queue, OneTokenCollector) and queue.later:
        return queue.later[-1]
    return queue.output


def empty(queue: RequestOutputCollector) -> None:
    """Drop what was put into a collector and not fetched yet."""
    if isinstance(queue, OneTokenCollector):
        queue.later.clear()
    queue.output = None
    queue.ready.clear()


class OneTokenOutputs:
    """Splits the outputs of such streams before vLLM's output processor."""

    def __init__(self, processor: "OutputProcessor", *, errors: ErrorCounter) -> None:
        """Take the place of `add_request` and `process_outputs` on this one processor."""
        self._processor = processor
        self._errors = errors
        own = registry.apply_to(processor, Feature.ONE_TOKEN_OUTPUTS, self)
        self._add_request = own["add_request"]
        self._process_outputs = own["process_outputs"]

    def add_request(
        self,
        request: "EngineCoreRequest",
        prompt: str | None,
        parent_req: Any = None,
        request_index: int = 0,
        queue: RequestOutputCollector | None = None,
    ) -> None:
        """Call vLLM's `add_request`; outputs that a parser may read are not merged."""
        try:
            if queue is not None and parser_may_read(request):
                OneTokenCollector.take_over(queue)
        except Exception as error:
            self._errors.record("one_token_outputs", error)
        self._add_request(request, prompt, parent_req, request_index, queue)

    def process_outputs(
        self,
        engine_core_outputs: "list[EngineCoreOutput]",
        engine_core_timestamp: float | None = None,
        iteration_stats: "IterationStats | None" = None,
        weight_version: str | None = None,
    ) -> OutputProcessorOutput:
        """Call vLLM's `process_outputs`, token by token for such streams."""
        whole = []
        split = []
        for output in engine_core_outputs:
            try:
                pieces = self._pieces_of(output)
            except Exception as error:
                self._errors.record("one_token_outputs", error)
                pieces = None
            if pieces is None:
                whole.append(output)
            else:
                split.append((output, pieces))
        result: OutputProcessorOutput = self._process_outputs(
            whole, engine_core_timestamp, iteration_stats, weight_version
        )
        for output, pieces in split:
            num_latencies = None
            for piece in pieces:
                if not self._processor.has_request(output.request_id):
                    break  # A stop string ended it.
                part = self._process_outputs(
                    [piece], engine_core_timestamp, iteration_stats, weight_version
                )
                result.request_outputs += part.request_outputs
                if not output.finished:
                    result.reqs_to_abort += part.reqs_to_abort
                if iteration_stats is None:
                    continue
                # One step is one latency, however many tokens came of it.
                latencies = iteration_stats.inter_token_latencies_iter
                if num_latencies is None:
                    num_latencies = len(latencies)
                del latencies[num_latencies:]
        return result

    def _pieces_of(self, output: "EngineCoreOutput") -> "list[EngineCoreOutput] | None":
        """Return the output in pieces; None: it is passed on as it is."""
        if len(output.new_token_ids) < 2:
            return None
        state = self._processor.request_states.get(output.request_id)
        if state is None or not isinstance(state.queue, OneTokenCollector):
            return None
        return one_token_each(output)


def one_token_each(output: "EngineCoreOutput") -> "list[EngineCoreOutput]":
    """Return outputs of one token each that together mean the same as `output`."""
    last = len(output.new_token_ids) - 1
    experts = output.routed_experts
    pieces = []
    for index, token_id in enumerate(output.new_token_ids):
        changes: dict[str, Any] = {"new_token_ids": [token_id]}
        if index > 0:
            # What concerns the prompt, or the step as such.
            changes |= {
                "events": None,
                "new_prompt_logprobs_tensors": None,
                "num_nans_in_logits": 0,
                "prefill_stats": None,
                "prompt_token_id_logprobs": None,
            }
        if index < last:
            changes |= {"finish_reason": None, "stop_reason": None}
        if output.new_logprobs is not None:
            changes["new_logprobs"] = type(output.new_logprobs)(
                *(rows[index : index + 1] for rows in output.new_logprobs[:3])
            )
        if output.new_sampling_mask is not None:
            changes["new_sampling_mask"] = output.new_sampling_mask.slice_request(index, 1)
        if experts is not None:
            # One row a token, before which there may be rows of the prompt.
            begin = len(experts) - last + index - 1
            changes["routed_experts"] = experts[begin if index else 0 : begin + 1]
        pieces.append(msgspec.structs.replace(output, **changes))
    return pieces
