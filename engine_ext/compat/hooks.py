"""What patches call: features implement it, and the top modules hand it over."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class WorkerReports(ABC):
    """What a worker is asked by the front end, whatever its model runner."""

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """Return figures of this worker, plain values only."""

    @abstractmethod
    def take_draft_counts(self, counts_ids: Sequence[str]) -> dict[str, Any]:
        """Return, once, the counts under these ids, of requests that are over."""

    @abstractmethod
    def flush(self, timeout_s: float) -> bool:
        """Wait until what was handed to the background is done."""


class SpeculatorHooks(WorkerReports):
    """A speculator of model runner V2 that wants to know requests by id."""

    @abstractmethod
    def end_requests(self, runner: Any, scheduler_output: "SchedulerOutput") -> None:
        """Called before the runner gives up the slots of requests that end or are preempted."""

    @abstractmethod
    def begin_step(self, runner: Any, scheduler_output: "SchedulerOutput") -> None:
        """Called once requests that begin, or go on after preemption, have their slots."""


class DrafterHooks(WorkerReports):
    """A drafter of model runner V1 that wants to know requests by id: what it is called with comes
    from the patches of `Feature.REQUESTS`."""

    @abstractmethod
    def on_arrival(self, request: "Request") -> None:
        """Called when a request joins the scheduler's queue, where worker and scheduler share a
        process: retrieval can begin while the request waits."""

    @abstractmethod
    def before_serving(self, runner: "GPUModelRunner") -> None:
        """Called on the CPU when the model is loaded and no request is there yet."""

    @abstractmethod
    def before_step(self, runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
        """Called before the runner learns which requests start and end with a step."""

    @abstractmethod
    def before_propose(self, runner: "GPUModelRunner", scheduler_output: "SchedulerOutput") -> None:
        """Called right before `propose`, with the rows as `propose` will see them."""

    @abstractmethod
    def supports_async_launch(self) -> bool:
        """Called by an engine that can launch steps before the tokens of earlier ones are known.

        Returns:
            Whether it may: it then asks for drafts after those steps with `propose_late`.
        """

    @abstractmethod
    def propose_late(
        self,
        runner: "GPUModelRunner",
        scheduler_output: "SchedulerOutput",
        emitted: list[list[int]],
        num_tokens: "NDArray[np.int32]",
        *,
        is_in_flight: bool,
        was_in_flight: bool,
        spare_s: float,
    ) -> list[list[int]]:
        """Draft after a step that was not waited for, once its tokens are known.

        Args:
            runner: with the rows as they are by now.
            scheduler_output: of the step.
            emitted: [num_reqs] lists with the latest token that is known of each row; empty: none
                to draft for.
            num_tokens: [max_num_reqs] int32, prompt and known output so far.
            is_in_flight: the next step has been launched, without drafts; those that are asked for
                only decide whether it pays to wait for that step. Else the next step has them.
            was_in_flight: the step was launched while the one before it ran.
            spare_s: how long the host would have to wait for the device, in seconds, if it did not
                draft.
        """


def drafter_of(runner: Any) -> DrafterHooks | None:
    """Return the drafter of a model runner; None: it is not ours."""
    drafter = getattr(runner, "drafter", None)
    return drafter if isinstance(drafter, DrafterHooks) else None


def speculator_of(runner: Any) -> SpeculatorHooks | None:
    """Return the speculator of a model runner V2; None: it is not ours."""
    speculator = getattr(runner, "speculator", None)
    return speculator if isinstance(speculator, SpeculatorHooks) else None
