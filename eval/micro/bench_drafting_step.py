"""A drafting step: what a batch has emitted is observed, and drafts are made for its requests."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from reprise.eval.benchmarks.bench_drafts import RepriseDrafter, make_work
from reprise.eval.replay.replay import accepted_length
from reprise.spec import DraftConfig, DraftProvider

CONTEXT = 2000
STEPS, FIRST_STEPS = 20, 4
"""Of each run of the requests; the first ones find nothing in the processor's caches."""
ROUNDS = 100


class Run:
    """Requests followed with exact greedy acceptance, begun anew after some steps."""

    def __init__(self, batch: int) -> None:
        self._work = make_work(batch, CONTEXT)
        self._answers = [np.array(answer, np.int32) for answer in self._work.answers]
        self._left = 0
        self.emitted_tokens = self.requests = 0

    def prepare(self) -> None:
        """Make the next step ready."""
        if not self._left:
            self._drafter = RepriseDrafter(1)
            self._drafter.start(self._work)
            self._positions = [1] * len(self._work.answers)
            self._emitted = [answer[:1] for answer in self._work.answers]
            for _ in range(FIRST_STEPS):
                self.step()
                self._emit()
            self._left = STEPS
        else:
            self._emit()
        self._left -= 1

    def step(self) -> None:
        """The step that is timed."""
        self._drafts = self._drafter.step(self._emitted)

    def _emit(self) -> None:
        for row, (answer, draft) in enumerate(zip(self._answers, self._drafts, strict=True)):
            rest = answer[self._positions[row] :]
            # The last token comes from the model: an answer's end is no draft.
            accepted = accepted_length(draft[: max(0, len(rest) - 1)], rest)
            self._emitted[row] = rest[: accepted + 1].tolist()
            self._positions[row] += len(self._emitted[row])
            self.emitted_tokens += len(self._emitted[row])
            self.requests += bool(len(rest))


@pytest.mark.parametrize("batch", [1, 8, 64])
def bench_drafting_step(benchmark: BenchmarkFixture, batch: int) -> None:
    DraftProvider(DraftConfig(num_threads=1)).warm_up()
    run = Run(batch)
    benchmark.pedantic(run.step, setup=run.prepare, rounds=ROUNDS)
    emitted = run.emitted_tokens / run.requests
    assert emitted > 1.2, f"{emitted} tokens a request and step: drafts are worth nothing"
    benchmark.extra_info["emitted_per_step"] = round(emitted, 3)
