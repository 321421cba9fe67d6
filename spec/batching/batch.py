# mypy: allow-untyped-calls
"""The compiled step of a batch, shared out over threads."""

import threading
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.spec.batching.shares import (
    BATCH_SIZE,
    DRAFT,
    EMITTED,
    ENDS,
    JOB_FIELDS,
    KIND,
    LEARN_SHARES,
    LIMITS,
    NUM_EMITTED,
    OBSERVE,
    REQ_INDICES,
    REQUESTS,
    SEMAPHORE_INTS,
    STOP,
    WEIGHTS_FIELDS,
    init_semaphores,
    post_all,
    work,
)
from reprise.spec.predictor.scratch import make_scratch, scratch_table

MIN_TO_DRAFT = 2
MIN_TO_LEARN = 8
MIN_TO_OBSERVE = 32
"""Requests per thread below which waking one costs more than it saves: drafting for a request takes
some 90 us, learning from it 8 and observing it 1."""

FIRST_ROOM = 256

Ints = npt.NDArray[np.int64]


class Tables(NamedTuple):
    """What all requests share, as compiled code takes it."""

    requests: Ints  # [requests, REQUEST_FIELDS]
    corpora: Ints  # [corpora, CORPUS_FIELDS]
    trace: Ints  # of trace_table
    weights: Ints  # of weights_table


class BatchRunner:
    """Runs observing, learning and drafting; the result is the same for any number of threads.

    The threads start with the first job that is shared out and end with the runner. One job at a
    time: whoever calls holds the provider's lock.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._scratches = [make_scratch() for _ in range(num_threads)]
        self._job = np.zeros(JOB_FIELDS, np.int64)
        self._min_prob = np.zeros(1)
        self._semaphores = np.zeros((num_threads, SEMAPHORE_INTS), np.int64)
        init_semaphores(self._semaphores)
        post_all(self._semaphores[:1])  # nobody: compiled now, and not when all is over
        scratch_tables = np.stack([scratch_table(scratch) for scratch in self._scratches])
        self._arrays = (self._job, self._min_prob, self._semaphores, scratch_tables)
        self._tables: Tables | None = None
        self._has_started = False
        self._make_room(FIRST_ROOM)

    def observe(
        self,
        req_indices: Sequence[int],  # [B]
        emitted: Sequence[int],  # [t]
        ends: Sequence[int],  # [B]: request i emitted emitted[ends[i - 1]:ends[i]]
        tables: Tables,
        *,
        much: bool,
    ) -> None:
        """Record what was emitted and learn from it; `much`: tokens were predicted, so that there
        is something to learn, and something to share out over threads."""
        self._begin(req_indices, tables, room=len(emitted))
        self._emitted[: len(emitted)] = emitted
        self._ends[: len(ends)] = ends
        self._job[NUM_EMITTED] = len(emitted)
        shares = self._shares(len(req_indices), MIN_TO_OBSERVE) if much else 1
        learn_shares = min(2, self._shares(len(req_indices), MIN_TO_LEARN)) if much else 1
        self._do(OBSERVE, shares, learn_shares)

    def draft(
        self, req_indices: Sequence[int], limits: Sequence[int], min_prob: float, tables: Tables
    ) -> None:
        """Draft up to limits [B] tokens for req_indices [B], each while the draft is likelier than
        `min_prob`.

        The drafts lie in the trace, their lengths in the request table.
        """
        self._begin(req_indices, tables)
        self._limits[: len(limits)] = limits
        self._min_prob[0] = min_prob
        self._do(DRAFT, self._shares(len(req_indices), MIN_TO_DRAFT))

    def _shares(self, size: int, min_size: int) -> int:
        return max(1, min(self._num_threads, size // min_size))

    def _begin(self, req_indices: Sequence[int], tables: Tables, *, room: int = 0) -> None:
        if max(len(req_indices), room) > len(self._req_indices):
            self._make_room(2 * max(len(req_indices), room))
        self._req_indices[: len(req_indices)] = req_indices
        self._job[BATCH_SIZE] = len(req_indices)
        if tables is not self._tables:
            self._tables = tables
            self._job[REQUESTS : WEIGHTS_FIELDS + 1] = [
                value for table in tables for value in (table.ctypes.data, len(table))
            ]

    def _make_room(self, size: int) -> None:
        """For so many requests and tokens."""
        self._req_indices, self._ends, self._limits = np.zeros((3, size), np.int64)
        self._emitted = np.zeros(size, np.int32)
        self._job[REQ_INDICES] = self._req_indices.ctypes.data
        self._job[ENDS] = self._ends.ctypes.data
        self._job[LIMITS] = self._limits.ctypes.data
        self._job[EMITTED] = self._emitted.ctypes.data

    def _do(self, kind: int, shares: int, learn_shares: int = 0) -> None:
        if max(shares, learn_shares) > 1 and not self._has_started:
            self._start()
        self._job[KIND : LEARN_SHARES + 1] = kind, shares, learn_shares
        work(0, *self._arrays)

    def _start(self) -> None:
        self._has_started = True
        for number in range(1, self._num_threads):
            # A daemon, as it sleeps in compiled code when the interpreter ends.
            threading.Thread(
                target=work, args=(number, *self._arrays), name="reprise-draft", daemon=True
            ).start()
        weakref.finalize(self, _stop, self._job, self._semaphores)


def _stop(job: Ints, semaphores: Ints) -> None:
    job[KIND] = STOP
    post_all(semaphores)
