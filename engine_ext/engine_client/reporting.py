"""Reports what engine, workers and cache do, and how they are, by way of the engine client."""

import asyncio
import weakref
from collections.abc import Sequence
from typing import Any

from reprise.engine_ext.engine_client.health import health_report
from reprise.engine_ext.engine_client.pinning import PinningAsyncLLM
from reprise.engine_ext.frontend.exact_forgetting import ExactForgetting


class ReportingAsyncLLM(PinningAsyncLLM):
    """Adds to `AsyncLLM` figures of front end and workers, and the health of all."""

    exact_forgetting: ExactForgetting | None = None
    _is_first_api_server: bool

    async def report(self, *, with_workers: bool = True) -> None:
        """Bring the metrics up to date; only the first API server process asks the workers."""
        if self.front_end is None:
            return
        workers = pins = None
        if with_workers and self._is_first_api_server:
            workers = await self._ask_workers("reprise_stats")
            pins = await self.get_pin_stats()
        self.front_end.figures.report(workers, pins)

    async def get_stats(self) -> dict[str, Any]:
        """Return figures of this front end and of the engine's workers, plain values."""
        front_end = self.front_end.figures.stats() if self.front_end is not None else {}
        workers, pins = await self.get_worker_stats(), await self.get_pin_stats()
        return {"front_end": front_end, "workers": workers, "kv_pins": pins}

    async def get_worker_stats(self) -> list[Any]:
        """Return figures of each worker, plain values; the call runs between two engine steps."""
        return await self._ask_workers("reprise_stats")

    async def health_check(self) -> dict[str, Any]:
        """Return the health of engine and cache, see `health_report`; calls no worker."""
        front_end, forgetting = self.front_end, self.exact_forgetting
        return health_report(
            is_dead=self.errored,
            errors=front_end.errors if front_end is not None else None,
            worker_errors=front_end.figures.worker_errors if front_end is not None else None,
            retrieval=forgetting.health() if forgetting is not None else [],
            num_pending=forgetting.num_pending if forgetting is not None else 0,
        )

    async def _find_retrieval(self) -> list[str]:
        """Return the addresses of the workers' own retrieval processes."""
        reports = await self.get_worker_stats()
        addresses = [report.get("retrieval_address") for report in reports]
        return [address for address in addresses if address]

    async def _ask_for_draft_counts(self, counts_ids: Sequence[str]) -> list[Any]:
        return await self._ask_workers("reprise_draft_counts", list(counts_ids))

    async def _ask_workers(self, method: str, *args: Any) -> list[Any]:
        """Return what each worker of every data parallel engine returns.

        Without a time limit: a worker that answered after it would leave its answer in the
        executor's queue, where the next step would take it for its own, and the engine would die.
        """
        per_engine = await self.engine_core.call_utility_all_async(
            "collective_rpc", method, None, args, None
        )
        return [worker for workers in per_engine for worker in workers]


async def keep_reporting(engine_ref: "weakref.ref[ReportingAsyncLLM]", interval_s: float) -> None:
    """Report; on workers while there is traffic or something changes, and once after. This task
    does not keep the engine alive."""
    seen: tuple[Any, ...] | None = None
    num_quiet = 0
    while True:
        await asyncio.sleep(interval_s)
        engine = engine_ref()
        if engine is None or engine.front_end is None or engine.errored:
            return
        progress = engine.front_end.figures.progress()
        is_quiet = progress == seen and not engine.get_num_unfinished_requests()
        num_quiet = num_quiet + 1 if is_quiet else 0
        seen = progress
        try:
            await engine.report(with_workers=num_quiet <= 1)
        except Exception as error:
            engine.front_end.errors.record("report", error)
        del engine
