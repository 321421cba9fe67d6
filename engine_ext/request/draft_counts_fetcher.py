"""Fetches the draft counts of all requests that asked for them from the workers, together.

Each call to a worker delays a step: it is answered between two engine steps. So however many
clients ask for information, there is one call at a time, for all of them, and a pause after it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from reprise.engine_ext.request.request_info import DraftCounts, RecordedCounts
from reprise.retrieval.host import steady_clock

AskWorkers = Callable[[Sequence[str]], Awaitable[Iterable[Any]]]
"""From ids of counts to what each worker's `DraftCountsStore.take` returns."""

# The worker drops a request one step after its last output, or after the abort at a stop
# string: until then there is nothing to fetch.
_MIN_PAUSE_S = 0.02
_MAX_PAUSE_S = 0.16
_TIMEOUT_S = 1.0
# Nobody waits for the counts of these, and of some the workers never hear: the workers are asked
# about them together with others, and alone twice at most.
_LEFT_TIMEOUT_S = 5.0
_LEFT_PAUSE_S = 2.0


class DraftCountsFetcher:
    """Fetches for all requests at once, at most once in 20 ms. Event loop only."""

    def __init__(self, ask_workers: AskWorkers) -> None:
        self._ask_workers = ask_workers
        self._waiting: dict[str, asyncio.Future[DraftCounts]] = {}
        self._left: dict[str, float] = {}
        """Of clients that have left; by id, until when they are asked about."""
        self._arrived = asyncio.Event()
        """A client waits that the workers were not asked for yet."""
        self._task: asyncio.Task[None] | None = None

    def drop(self, counts_ids: Sequence[str]) -> None:
        """Have the workers keep no counts under these ids, of requests whose clients have left;
        returns at once."""
        if counts_ids:
            self._left |= dict.fromkeys(counts_ids, steady_clock.now_s() + _LEFT_TIMEOUT_S)
            self._start()

    async def fetch(self, counts_ids: Sequence[str]) -> dict[str, DraftCounts]:
        """Wait for the counts under these ids, up to a second or so long.

        Returns:
            By id, what the workers have reported by then.

        Raises:
            Exception: the call failed.
        """
        if not counts_ids:
            return {}
        loop = asyncio.get_running_loop()
        futures = {counts_id: loop.create_future() for counts_id in counts_ids}
        self._waiting |= futures
        self._arrived.set()
        self._start()
        try:
            done, _ = await asyncio.wait(futures.values(), timeout=_TIMEOUT_S)
        finally:
            for counts_id in futures:
                self._waiting.pop(counts_id, None)
        return {id_: future.result() for id_, future in futures.items() if future in done}

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        pause_s = _MIN_PAUSE_S
        try:
            while self._waiting or self._left:
                if not self._waiting:
                    await self._has_arrived(_LEFT_PAUSE_S)
                    pause_s = _MIN_PAUSE_S
                self._arrived.clear()
                found = await self._ask([*self._waiting, *self._left])
                await asyncio.sleep(_MIN_PAUSE_S)
                pause_s = _MIN_PAUSE_S if found else min(2 * pause_s, _MAX_PAUSE_S)
                if await self._has_arrived(pause_s - _MIN_PAUSE_S):
                    pause_s = _MIN_PAUSE_S
                now_s = steady_clock.now_s()
                self._left = {id_: end_s for id_, end_s in self._left.items() if end_s > now_s}
        finally:
            self._task = None

    async def _has_arrived(self, pause_s: float) -> bool:
        """Pause until a client waits that the workers were not asked for, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._arrived.wait()
        return self._arrived.is_set()

    async def _ask(self, counts_ids: list[str]) -> bool:
        """Ask once; return whether the workers had counts under any of these ids."""
        found: dict[str, DraftCounts] = {}
        try:
            for counts_of in await self._ask_workers(counts_ids):
                found.update(msgspec.convert(counts_of or {}, dict[str, RecordedCounts]))
        except Exception as error:
            for counts_id in counts_ids:
                self._left.pop(counts_id, None)  # an engine that is dead keeps nothing
                future = self._waiting.pop(counts_id, None)
                if future is not None and not future.done():
                    future.set_exception(error)
            return False
        for counts_id, counts in found.items():
            self._left.pop(counts_id, None)
            future = self._waiting.pop(counts_id, None)
            if future is not None and not future.done():
                future.set_result(counts)
        return bool(found)
