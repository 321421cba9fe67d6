"""What engine steps take without the drafter, where their times say what drafts cost."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from reprise.engine_ext.core.latency import LatencyHistogram
from reprise.spec.api.scheduling_mode import SchedulingMode

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class StepContext(NamedTuple):
    """How a step relates to those before and after it."""

    mode: SchedulingMode
    is_late: bool = False
    """Other steps were launched before the tokens of this one were known."""
    was_in_flight: bool = False
    """It was launched while the one before it ran."""
    saved_s: float = 0.0
    """How much of the time that drafting takes is no loss."""


class StepClock:
    """Measures one worker's steps: called before the drafter in each step, and when it is done."""

    def __init__(self) -> None:
        self.num_drafted_tokens = 0
        """Drafted tokens that the latest step verified."""
        self.context = self._usual_context = StepContext(SchedulingMode.SYNC)
        self._only_decoded = False
        self._request_ids: frozenset[str] = frozenset()
        self._began_s = self._ended_s = 0.0
        self._steps = {"waited_for": 0, "run_ahead": 0}
        self._propose_us = LatencyHistogram()

    def set_async_launch(self) -> None:
        """Note that the engine can launch steps before the tokens of earlier ones are known."""
        self.context = self._usual_context = StepContext(SchedulingMode.DRAINED)

    @contextmanager
    def at(self, context: StepContext) -> Iterator[None]:
        """Use another context than usual, for one step."""
        self.context = context
        try:
            yield
        finally:
            self.context = self._usual_context

    def note_step(self, scheduler_output: "SchedulerOutput") -> None:
        """Record that a step is over; the drafter is called next."""
        drafts = scheduler_output.scheduled_spec_decode_tokens
        self.num_drafted_tokens = sum(map(len, drafts.values()))
        num_decoded_tokens = len(scheduler_output.num_scheduled_tokens) + self.num_drafted_tokens
        self._only_decoded = scheduler_output.total_num_scheduled_tokens == num_decoded_tokens

    def take_step_time_s(self) -> float | None:
        """Return, once a step, when the drafter begins, what the step took without it, if it did
        nothing but decode and that is known."""
        before_s, self._began_s = self._began_s, time.perf_counter()
        only_decoded, self._only_decoded = self._only_decoded, False
        if not only_decoded:
            return None
        if not self.context.is_late:
            return self._began_s - self._ended_s
        # Drafting went on while it ran. One without drafts after a gap is like no other.
        return self._began_s - before_s if self.context.was_in_flight else None

    def note_requests(self, request_ids: Sequence[str]) -> bool:
        """Record the requests that are drafted for; return whether one of them was the last time.
        If none was, the engine may have idled in between."""
        was_busy = not self._request_ids.isdisjoint(request_ids)
        self._request_ids = frozenset(request_ids)
        return was_busy

    def note_drafted(self) -> None:
        """Record that the drafter is done."""
        self._steps["run_ahead" if self.context.is_late else "waited_for"] += 1
        self._ended_s = time.perf_counter()
        self._propose_us.observe((self._ended_s - self._began_s) * 1e6)

    def report(self) -> dict[str, Any]:
        """Return figures since the start."""
        return {"steps": dict(self._steps), "propose_us": self._propose_us.summary()}
