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

AskWorkers = Callable[[Sequence[str]], Awaitable[Iterable[Any]]]
"""From request ids to what each worker's `DraftCountsStore.take` returns."""

# The worker drops a request one step after its last output, or after the abort at a stop
# string: until then there is nothing to fetch.
_MIN_PAUSE_S = 0.02
_MAX_PAUSE_S = 0.16
_TIMEOUT_S = 1.0
# Nobody waits for these.
_LEFT_TIMEOUT_S = 5.0


class DraftCountsFetcher:
    """Fetches for all requests at once, at most once in 20 ms. Event loop only."""

    def __init__(self, ask_workers: AskWorkers) -> None:
        self._ask_workers = ask_workers
        self._waiting: dict[str, asyncio.Future[DraftCounts]] = {}
        self._task: asyncio.Task[None] | None = None
        self._dropping: set[asyncio.Task[None]] = set()

    def drop(self, request_ids: Sequence[str]) -> None:
        """Have the workers keep no counts of requests whose clients have left; returns at once."""
        if request_ids:
            task = asyncio.create_task(self._fetch_for_nobody(list(request_ids)))
            self._dropping.add(task)
            task.add_done_callback(self._dropping.discard)

    async def _fetch_for_nobody(self, request_ids: Sequence[str]) -> None:
        with suppress(Exception):  # an engine that is dead keeps nothing
            await self.fetch(request_ids, timeout_s=_LEFT_TIMEOUT_S)

    async def fetch(
        self, request_ids: Sequence[str], *, timeout_s: float | None = None
    ) -> dict[str, DraftCounts]:
        """Wait for the counts of these requests, up to a second or so long.

        Returns:
            By request id, what the workers have reported by then.

        Raises:
            Exception: the call failed.
        """
        if not request_ids:
            return {}
        loop = asyncio.get_running_loop()
        futures = {request_id: loop.create_future() for request_id in request_ids}
        self._waiting |= futures
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            timeout_s = _TIMEOUT_S if timeout_s is None else timeout_s
            done, _ = await asyncio.wait(futures.values(), timeout=timeout_s)
        finally:
            for request_id in futures:
                self._waiting.pop(request_id, None)
        return {id_: future.result() for id_, future in futures.items() if future in done}

    async def _run(self) -> None:
        pause_s = _MIN_PAUSE_S
        try:
            while self._waiting:
                found = await self._ask(list(self._waiting))
                pause_s = _MIN_PAUSE_S if found else min(2 * pause_s, _MAX_PAUSE_S)
                await asyncio.sleep(pause_s)
        finally:
            self._task = None

    async def _ask(self, request_ids: list[str]) -> bool:
        """Ask once; return whether the workers had counts of any of these requests."""
        found: dict[str, DraftCounts] = {}
        try:
            for counts_of in await self._ask_workers(request_ids):
                found.update(msgspec.convert(counts_of or {}, dict[str, RecordedCounts]))
        except Exception as error:
            for request_id in request_ids:
                future = self._waiting.pop(request_id, None)
                if future is not None and not future.done():
                    future.set_exception(error)
            return False
        for request_id, counts in found.items():
            future = self._waiting.pop(request_id, None)
            if future is not None and not future.done():
                future.set_result(counts)
        return bool(found)
