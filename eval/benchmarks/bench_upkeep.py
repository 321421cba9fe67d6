"""How long a decode step waits while the cache of answers changes (bench_drafts.py --only upkeep).

A thread steps requests as an engine would, with pauses for the model; another adds an answer and
removes the oldest one for every request that finishes, as the worker's learner does. In the middle
an answer of a quarter of all tokens is removed, so that what it leaves behind is cleared away.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reprise.spec import DraftConfig, DraftProvider

REQUESTS = 8
MODEL_S = 0.002  # what the model takes for a step, less than any does
MAX_DRAFT_TOKENS = 16
LARGE_SHARE = 4
UPKEEP_FIELDS = (
    "bench", "cache", "tokens", "steps", "changes", "behind",
    "wait_us_p50", "wait_us_p99", "wait_us_max", "step_us_p50", "step_us_p99", "step_us_max",
    "change_us_mean", "bytes_per_token", "filled_tokens_per_s",
)  # fmt: skip
IntArray = npt.NDArray[np.int32]


class Engine:
    """Steps a batch of requests to the ends of their answers, again and again."""

    def __init__(self, provider: DraftProvider, answers: Sequence[list[int]]) -> None:
        self._provider = provider
        self._answers = answers
        self._next = 0
        self._ids = [f"request {row}" for row in range(REQUESTS)]
        self._texts: list[list[int]] = [[] for _ in self._ids]
        self._at = [0] * REQUESTS
        self._emitted: list[list[int]] = [[] for _ in self._ids]
        for row in range(REQUESTS):
            self._start(row)

    def _start(self, row: int) -> None:
        self._texts[row] = self._answers[self._next % len(self._answers)]
        self._next += 1
        self._at[row], self._emitted[row] = 1, self._texts[row][:1]
        self._provider.start(self._ids[row], [1, 2, 3])

    def step(self) -> tuple[float, float, int]:
        """One step; returns (seconds waited, seconds that it took, requests that finished).

        A step of no requests does nothing but wait until drafting may begin.
        """
        arrived_s = time.perf_counter()
        self._provider.step([], [])
        begun_s = time.perf_counter()
        drafts = self._provider.step(self._ids, self._emitted)
        done_s = time.perf_counter()
        finished = 0
        for row, draft in enumerate(drafts):
            text, at = self._texts[row], self._at[row]
            accepted = 0
            while accepted < min(len(draft), len(text) - at - 1):
                if draft[accepted] != text[at + accepted]:
                    break
                accepted += 1
            self._emitted[row] = text[at : at + accepted + 1]
            self._at[row] = at + accepted + 1
            if self._at[row] >= len(text):
                self._provider.finish(self._ids[row])
                self._start(row)
                finished += 1
        return begun_s - arrived_s, done_s - begun_s, finished


class Learner(threading.Thread):
    """Adds an answer and removes the oldest one, each time it is told to, or without a pause."""

    def __init__(
        self,
        provider: DraftProvider,
        answers: Sequence[IntArray],
        *,
        number: int,
        without_pause: bool,
    ) -> None:
        super().__init__(name="learner", daemon=True)
        self._provider = provider
        self._answers = answers
        self._number = number
        self._without_pause = without_pause
        self._stopped = False
        self.finished: queue.Queue[str] = queue.Queue()
        """An id that is to be removed as well, or nothing, for each finished request."""
        self.seconds: list[float] = []

    def stop(self) -> None:
        """Leave what is left."""
        self._stopped = True
        self.finished.put("")
        self.join()

    def run(self) -> None:
        size, number = len(self._answers), self._number
        while True:
            also = ""
            with contextlib.suppress(queue.Empty):
                also = self.finished.get(block=not self._without_pause)
            if self._stopped:
                return
            if also:
                self._provider.remove_answer(also)
            began_s = time.perf_counter()
            self._provider.add_answer(str(size + number), self._answers[number % size])
            self._provider.remove_answer(str(number))
            self.seconds.append(time.perf_counter() - began_s)
            number += 1


def _quantiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    us = 1e6 * np.array(seconds)
    return {
        f"{name}_us_p50": round(float(np.median(us)), 1),
        f"{name}_us_p99": round(float(np.quantile(us, 0.99)), 1),
        f"{name}_us_max": round(float(us.max()), 1),
    }


def bench_upkeep(answers: Sequence[IntArray], *, steps: int) -> Iterator[dict[str, Any]]:
    """Rows: waits and times of a step with a cache that rests, that takes an answer in and one out
    for each finished request, and that does so without a pause."""
    large = np.concatenate(answers[: len(answers) // LARGE_SHARE])
    kept = answers[len(answers) // LARGE_SHARE :]
    provider = DraftProvider(
        DraftConfig(
            num_speculative_tokens=MAX_DRAFT_TOKENS,
            verify_cost=0.02,
            num_threads=1,
            max_corpus_bytes=1 << 36,
        )
    )
    began_s = time.perf_counter()
    for number, answer in enumerate(kept):
        provider.add_answer(str(number), answer)
    filled_s = time.perf_counter() - began_s
    engine = Engine(provider, [answer.tolist() for answer in kept[-2000:]])
    number = 0
    for cache in ("at rest", "one in, one out", "without a pause"):
        provider.add_answer("large", large)  # still there, if nobody removed it
        learner = Learner(provider, kept, number=number, without_pause=cache == "without a pause")
        if cache != "at rest":
            learner.start()
        waits, times = [], []
        for step in range(steps):
            time.sleep(MODEL_S)
            waited_s, took_s, finished = engine.step()
            waits.append(waited_s)
            times.append(took_s)
            if cache == "one in, one out":
                for _ in range(finished):
                    learner.finished.put("")
            if step == steps // 2 and cache != "at rest":
                learner.finished.put("large")
        behind = learner.finished.qsize()
        if cache != "at rest":
            learner.stop()
        number += len(learner.seconds)
        stats = provider.stats()
        yield {
            "bench": "upkeep",
            "cache": cache,
            "tokens": sum(map(len, answers)),
            "steps": steps,
            "changes": len(learner.seconds),
            "behind": behind,
            **_quantiles("wait", waits[10:]),
            **_quantiles("step", times[10:]),
            "change_us_mean": round(1e6 * float(np.mean(learner.seconds or [0.0])), 1),
            "bytes_per_token": round(stats.bytes / stats.cached_tokens, 2),
            "filled_tokens_per_s": round(sum(map(len, kept)) / filled_s),
        }
