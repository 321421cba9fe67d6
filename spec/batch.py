# mypy: allow-untyped-calls
"""The compiled step of a batch, shared out over threads."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .drafting import draft_batch, learn_batch, observe_batch
from .scratch import make_scratch, scratch_table

LEAST_TO_DRAFT = 2
LEAST_TO_LEARN = 8
LEAST_TO_OBSERVE = 32
"""Requests per thread below which waking one costs more than it saves: some 30 us, where drafting
for a request takes 90, learning from it 8 and observing it 1."""

Ints = npt.NDArray[np.int64]


class Tables(NamedTuple):
    """What all requests share, as compiled code takes it."""

    requests: Ints  # [slots, REQUEST_FIELDS]
    corpora: Ints  # [corpora, CORPUS_FIELDS]
    others: tuple[Ints, Ints]  # of trail_table and weights_table


class BatchRunner:
    """Runs observing, learning and drafting; the result is the same for any number of threads."""

    def __init__(self, num_threads: int) -> None:
        self._scratches = [make_scratch() for _ in range(num_threads)]
        self._scratch_tables = [scratch_table(scratch) for scratch in self._scratches]
        self._pool = ThreadPoolExecutor(num_threads - 1) if num_threads > 1 else None

    def observe(
        self,
        slots: Ints,  # [B]
        emitted: npt.NDArray[np.int32],  # [t]
        ends: Ints,  # [B]: request i emitted emitted[ends[i - 1]:ends[i]]
        tables: Tables,
        *,
        much: bool,
    ) -> None:
        """Take in what was emitted and learn from it; `much`: tokens were predicted, so that there
        is something to learn, and something to share out over threads."""
        least = LEAST_TO_OBSERVE if much else len(slots)
        self._share(observe_batch, (slots, emitted, ends), tables, least=least)
        own = (tables.requests, tables.others)
        if much and self._pool is not None and len(slots) >= 2 * LEAST_TO_LEARN:
            other = self._pool.submit(learn_batch, slots, False, True, *own)
            learn_batch(slots, True, False, *own)
            other.result()
        else:
            learn_batch(slots, True, True, *own)

    def draft(self, slots: Ints, limits: Ints, least: float, tables: Tables) -> None:
        """Draft at most limits [B] tokens for slots [B], while a token's chance is `least`.

        The drafts lie in the trail, their lengths in the request table.
        """
        self._share(draft_batch, (slots, limits, least), tables, least=LEAST_TO_DRAFT)

    def _share(self, work: Any, own: tuple[Any, ...], tables: Tables, *, least: int) -> None:
        """Do `work` for the batch in shares of at least so many requests."""
        size = len(own[0])
        shares = max(1, min(len(self._scratches), size // least))
        if shares == 1 or self._pool is None:
            work(*own, 0, size, *tables, self._scratch_tables[0])
            return
        edges = [size * i // shares for i in range(shares + 1)]
        calls = [
            (*own, edges[i], edges[i + 1], *tables, self._scratch_tables[i]) for i in range(shares)
        ]
        futures = [self._pool.submit(work, *call) for call in calls[1:]]
        work(*calls[0])
        for future, call in zip(futures, calls[1:], strict=True):
            if future.cancel():  # its thread has not woken up yet
                work(*call)
            else:
                future.result()
