"""Has the engines forget the pinned prefixes of what is erased."""

import asyncio
from collections.abc import Awaitable, Callable

from vllm.utils.async_utils import cancel_task_threadsafe

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.retrieval.api.invalidation import CLOCK_SKEW_S, Invalidation
from reprise.retrieval.host import steady_clock

_PAUSE_S = 5.0
_MAX_WAITING = 100


class PinForgetting:
    """Asks the engines until they have done so: a pin shows how a tenant's prompts begin. Pins are
    no older than their engine, so what was erased before it began is not asked for. Event loop
    only.

    Args:
        forget_pins: Asks all engines.
        errors: Counts failures, after each of which they are asked again.
    """

    def __init__(
        self, forget_pins: Callable[[Invalidation], Awaitable[None]], *, errors: ErrorCounter
    ) -> None:
        self._forget_pins, self._errors = forget_pins, errors
        self._began_s = steady_clock.now_s()
        self._waiting: dict[str, Invalidation] = {}
        self._task: asyncio.Task[None] | None = None
        self.pause_s = _PAUSE_S
        """After a failure."""

    @property
    def num_pending(self) -> int:
        """Erasures that the engines have yet to carry out."""
        return len(self._waiting)

    def begin(self, invalidation: Invalidation) -> None:
        """Have the engines asked, in a task, if whole namespaces are meant."""
        if not invalidation.names_namespaces:
            return
        if invalidation.made_s < self._began_s - CLOCK_SKEW_S:
            return
        if len(self._waiting) >= _MAX_WAITING:
            self._waiting.clear()
            invalidation = Invalidation.create(everything=True)
        self._waiting[invalidation.invalidation_id] = invalidation
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._ask())

    async def finish(self, *, within_s: float) -> bool:
        """Wait until nothing is pending, but not longer; return whether nothing is."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=within_s)
        return not self._waiting

    def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            cancel_task_threadsafe(self._task)

    async def _ask(self) -> None:
        while self._waiting:
            invalidation_id, invalidation = next(iter(self._waiting.items()))
            try:
                await self._forget_pins(invalidation)
            except Exception as error:
                self._errors.record("forget_pins", error)
                await asyncio.sleep(self.pause_s)
            else:
                self._waiting.pop(invalidation_id, None)
