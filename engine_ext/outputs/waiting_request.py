"""Has vLLM know a request that waits, before the engine is given it, for an answer from elsewhere.

vLLM registers a request before it first waits for anything: from then on an abort ends it, the
bounds on requests count it, and it is told of the end of its engine. So is a request here.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from reprise.engine_ext.outputs.replay import Replayer

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

_T = TypeVar("_T")


async def wait_as_known(
    work: Coroutine[Any, Any, _T],
    request: "EngineCoreRequest",
    prompt: str | None,
    queue: "RequestOutputCollector",
    *,
    processor: "OutputProcessor",
    replayer: Replayer,
    on_over: Callable[[], None],
) -> _T | None:
    """Return what `work` returns; until then, and no longer, the processor knows the request.

    Args:
        work: Cancelled if the request ends before it does.
        request: One that the processor does not know.
        prompt: Its text, if known.
        queue: Of the request. If it ended, by an abort or its engine's death, its client finds that
            in here, and the engine is not to be given it.
        processor: Of the engine's client.
        replayer: Withdraws the request.
        on_over: Called after `work`, if the request ended before, or its client has left.
    """
    try:
        processor.add_request(request, prompt, None, 0, queue)
    except BaseException:
        work.close()
        raise
    working = asyncio.create_task(work)
    told = asyncio.create_task(queue.ready.wait())
    goes_on = False
    try:
        await asyncio.wait((working, told), return_when=asyncio.FIRST_COMPLETED)
        goes_on = queue.output is None
    finally:
        told.cancel()
        if queue.output is None:
            replayer.withdraw(request.request_id, queue)
        if not goes_on:
            working.cancel()
            working.add_done_callback(lambda _: on_over())
    # Who closes the front end cancels it as well.
    return working.result() if goes_on and not working.cancelled() else None
