"""Adds to the last output of a request what its client has asked to know about it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.request.draft_counts_fetcher import DraftCountsFetcher
from reprise.engine_ext.request.http_context import current_http_context
from reprise.engine_ext.request.request_control import wants_info
from reprise.engine_ext.request.request_info import InfoCollector

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

# From the request's stream of outputs to where the request is added: both run in one task.
current_info: ContextVar[InfoCollector | None] = ContextVar("reprise_info", default=None)


class InfoReporter:
    """Sets `reprise_info` on last outputs, and passes it to the HTTP reply.

    Args:
        ask_workers: From request ids to what each worker has counted for them.
        errors: Where failures are counted; a request goes on without the information.
    """

    def __init__(
        self,
        ask_workers: Callable[[Sequence[str]], Awaitable[Iterable[Any]]],
        *,
        errors: ErrorCounter,
    ) -> None:
        self._draft_counts = DraftCountsFetcher(ask_workers)
        self._errors = errors

    def is_wanted(self, params: "SamplingParams") -> bool:
        """Return whether the client of the request with these params asks for its information."""
        try:
            http_context = current_http_context.get()
            headers = http_context.headers if http_context is not None else {}
            return wants_info(headers, params.extra_args)
        except Exception as error:
            self._errors.record("info", error)
            return False

    async def add_to(
        self, outputs: "AsyncGenerator[RequestOutput, None]"
    ) -> "AsyncGenerator[RequestOutput, None]":
        """Yield `outputs`, the last of them with a `RequestInfo` as `reprise_info`."""
        collector = InfoCollector()
        async with aclosing(outputs):
            token = current_info.set(collector)
            try:
                # The request is added on the way to its first output. What its caller's task does
                # after that, or after a refusal, is none of this request.
                output = await anext(outputs, None)
            finally:
                current_info.reset(token)
            while output is not None:
                if output.finished:
                    await self._add(output, collector)
                yield output
                output = await anext(outputs, None)

    async def _add(self, output: "RequestOutput", collector: InfoCollector) -> None:
        try:
            output.reprise_info = await collector.collect(self._draft_counts.fetch)
        except Exception as error:
            self._errors.record("info", error)
            return
        if (http_context := current_http_context.get()) is not None:
            http_context.add_info(output.reprise_info)
