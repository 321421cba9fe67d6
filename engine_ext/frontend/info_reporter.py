"""Adds to the last output of a request what its client has asked to know about it."""

from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.request.draft_counts_fetcher import DraftCountsFetcher
from reprise.engine_ext.request.http_context import current_http_context
from reprise.engine_ext.request.recorded_answers import RecordedAnswer, RecordedAnswers
from reprise.engine_ext.request.request_control import wants_info, wants_record
from reprise.engine_ext.request.request_info import InfoCollector
from reprise.retrieval.host import steady_clock

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

# From the request's stream of outputs to where the request is added: both run in one task.
current_info: ContextVar[InfoCollector | None] = ContextVar("reprise_info", default=None)


class InfoReporter:
    """Sets `reprise_info` on last outputs, and passes it to the HTTP reply; keeps the steps of
    those requests whose clients ask for that.

    Args:
        ask_workers: From ids of counts to what each worker keeps under them.
        recorded: Where steps are kept; None: nowhere.
        errors: Where failures are counted; a request goes on without the information.
    """

    def __init__(
        self,
        ask_workers: Callable[[Sequence[str]], Awaitable[Iterable[Any]]],
        *,
        recorded: RecordedAnswers | None = None,
        errors: ErrorCounter,
    ) -> None:
        self._recorded = recorded
        self._draft_counts = DraftCountsFetcher(ask_workers)
        self._errors = errors

    def is_wanted(self, params: "SamplingParams") -> bool:
        """Return whether the client of the request with these params asks for its information."""
        return self._asks(wants_info, params)

    def is_recorded(self, params: "SamplingParams") -> bool:
        """Return whether the client of the request with these params asks to have it recorded."""
        return self._recorded is not None and params.n == 1 and self._asks(wants_record, params)

    def _asks(
        self,
        wants: Callable[[Mapping[str, str], Mapping[str, Any] | None], bool],
        params: "SamplingParams",
    ) -> bool:
        try:
            http_context = current_http_context.get()
            headers = http_context.headers if http_context is not None else {}
            return wants(headers, params.extra_args)
        except Exception as error:
            self._errors.record("info", error)
            return False

    async def add_to(
        self,
        outputs: "AsyncGenerator[RequestOutput, None]",
        *,
        informs: bool = True,
        is_delta: bool = False,
        records: bool = False,
    ) -> "AsyncGenerator[RequestOutput, None]":
        """Yield `outputs`, the last of them with a `RequestInfo` as `reprise_info`.

        Args:
            outputs: Of one request.
            informs: The client asks for the information.
            is_delta: Each output has what is new in it only.
            records: The client asks for the steps to be kept; of one sequence.
        """
        collector, begun_s = InfoCollector(), steady_clock.now_s()
        token_ids: list[int] = []
        with self._dropping(collector):
            async with aclosing(outputs):
                token = current_info.set(collector)
                try:
                    # The request is added on the way to its first output. What its caller's task
                    # does after that, or after a refusal, is none of this request.
                    output = await anext(outputs, None)
                finally:
                    current_info.reset(token)
                while output is not None:
                    if records and output.outputs:
                        if not is_delta:
                            token_ids.clear()
                        token_ids += output.outputs[0].token_ids
                    if output.finished:
                        await self._add(output, collector, informs=informs)
                        if records:
                            self._keep(output, collector, token_ids, begun_s)
                    yield output
                    output = await anext(outputs, None)

    @contextmanager
    def _dropping(self, collector: InfoCollector) -> Iterator[None]:
        """Have the workers keep nothing of a request whose client leaves before it is over, or that
        fails."""
        try:
            yield
        finally:
            if not collector.has_collected:
                try:
                    self._draft_counts.drop(collector.counts_ids)
                except Exception as error:
                    self._errors.record("info", error)

    async def _add(
        self, output: "RequestOutput", collector: InfoCollector, *, informs: bool
    ) -> None:
        try:
            info = await collector.collect(self._draft_counts.fetch)
            if not informs:
                return
            output.reprise_info = info
        except Exception as error:
            self._errors.record("info", error)
            return
        if (http_context := current_http_context.get()) is not None:
            http_context.add_info(output.reprise_info)

    def _keep(
        self,
        output: "RequestOutput",
        collector: InfoCollector,
        token_ids: list[int],
        begun_s: float,
    ) -> None:
        """Keep the steps of a request that the engine has generated for, if they are all there."""
        try:
            if self._recorded is None or collector.namespace is None or len(collector.records) != 1:
                return
            (record,) = collector.records
            if sum(step.num_emitted for step in record.steps) == len(token_ids) - 1:
                prompt_token_ids = list(output.prompt_token_ids or ())
                answer = RecordedAnswer(prompt_token_ids, token_ids, record, begun_s)
                self._recorded.add(collector.namespace, answer)
        except Exception as error:
            self._errors.record("record", error)
