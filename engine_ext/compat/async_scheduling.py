"""vLLM's asynchronous scheduling, for engines with our proposer, to which vLLM does not give it.

There the next step is scheduled while the one before it runs, so that nothing waits for the
scheduler. vLLM refuses that to drafters that need the sampled tokens on the CPU, as ours does, and
on the CPU to all. Two ways to have it all the same:

* `run_ahead.py`, where engine core and model runner share a process and a device computes
  meanwhile: steps without drafts are launched before the tokens of those before are known;
* `schedule_ahead.py`, where the one model runner is a process of its own, as on the CPU: steps are
  scheduled with room for drafts, and the runner, which knows them first, fills them in.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.engine.arg_utils import EngineArgs
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from reprise.engine_ext.compat import draft_padding
from reprise.engine_ext.compat.expected_parameters import check_parameters
from reprise.engine_ext.compat.guarded import Original, place_of, wrap_step_method
from reprise.engine_ext.compat.runner_hooks import are_installed
from reprise.engine_ext.core.identity import uses_our_proposer
from reprise.engine_ext.scheduling.ahead import Ahead, ahead_of, set_ahead, step_without_requests
from reprise.engine_ext.scheduling.run_ahead import RunAhead
from reprise.engine_ext.scheduling.schedule_ahead import ScheduleAhead, nap_between_looks

logger = init_logger(__name__)

_EXPECTED_PARAMETERS: dict[tuple[type, str], tuple[str, ...]] = {
    (EngineCore, "step_with_batch_queue"): ("self",),
    (AsyncScheduler, "_update_after_schedule"): ("self", "scheduler_output"),
    (AsyncScheduler, "update_from_output"): ("self", "scheduler_output", "model_runner_output"),
    (AsyncScheduler, "update_draft_token_ids"): ("self", "draft_token_ids"),
    (AsyncScheduler, "has_requests"): ("self",),
    (SpinCondition, "wait"): ("self", "timeout_ms"),
    (UniProcExecutor, "_init_executor"): ("self",),
    (MultiprocExecutor, "_init_executor"): ("self",),
    (VllmConfig, "__post_init__"): ("self",),
}
_STATE = "_reprise_ahead"

_ENGINES: dict[Ahead, Callable[[Any], RunAhead | ScheduleAhead]] = {
    Ahead.RUN: RunAhead,
    Ahead.SCHEDULE: ScheduleAhead,
}


def possible_ahead(config: VllmConfig) -> Ahead | None:
    """The way by which an engine of this config gains, where nothing in it stands against it."""
    parallel = config.parallel_config
    if (
        not uses_our_proposer(config)
        or config.model_config is None
        or config.model_config.is_hybrid  # its states follow accepted drafts on the device
        or config.kv_transfer_config is not None
        or config.scheduler_config.scheduler_cls is not None
        or not (parallel.world_size == parallel.data_parallel_size == 1)
    ):
        return None
    if is_overlapping():
        return Ahead.RUN if parallel.distributed_executor_backend in (None, "uni") else None
    has_worker = parallel.distributed_executor_backend == "mp"
    return Ahead.SCHEDULE if has_worker and num_cores() > 1 else None


def is_overlapping() -> bool:
    """Whether the device works while the host does."""
    return not current_platform.is_cpu()


def num_cores() -> int:
    """Cores that engine core and worker may run on: with one, neither can while the other does."""
    return len(os.sched_getaffinity(0))


def install() -> None:
    """In front end and engine core: schedule our proposer's engines asynchronously; once.

    vLLM checks a config in both, and refuses it with asynchronous scheduling. So the front end,
    which knows what the user asked for, only marks it, and the engine core reads the mark.

    Raises:
        RuntimeError: vLLM is not as expected; it is left as it is.
    """
    if place_of(EngineCore.step_with_batch_queue) is not None:
        return
    check_parameters(_EXPECTED_PARAMETERS)
    draft_padding.install()
    create: Callable[..., Any] = EngineArgs.create_engine_config
    check: Callable[..., None] = VllmConfig.__post_init__
    init_in_process: Callable[..., None] = UniProcExecutor._init_executor
    init_workers: Callable[..., None] = MultiprocExecutor._init_executor

    @wraps(create)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> VllmConfig:
        config: VllmConfig = create(self, *args, **kwargs)
        ahead = possible_ahead(config) if self.async_scheduling is None else None
        if ahead is not None:
            set_ahead(config, ahead)
            logger.info("Reprise: %s.", ahead.value)
        return config

    @wraps(init_in_process)
    def init_uniproc_executor(self: Any) -> None:
        if ahead_of(self.vllm_config) is Ahead.RUN:
            self.vllm_config.scheduler_config.async_scheduling = True
        init_in_process(self)

    @wraps(init_workers)
    def init_multiproc_executor(self: Any) -> None:
        init_workers(self)
        if ahead_of(self.vllm_config) is not Ahead.SCHEDULE:
            return
        # Set only now: the worker has its copy, and goes on step by step.
        if self.collective_rpc(_fills_in) == [True]:
            self.vllm_config.scheduler_config.async_scheduling = True
            nap_between_looks(self.response_mqs)
        else:
            set_ahead(self.vllm_config, None)

    @wraps(check)
    def post_init(self: Any) -> None:
        was_async = ahead_of(self) is not None and self.scheduler_config.async_scheduling
        if was_async:  # the engine core checks once more when it is ready
            self.scheduler_config.async_scheduling = False
        check(self)
        if was_async:
            self.scheduler_config.async_scheduling = True

    wrap_step_method(
        EngineCore, "step_with_batch_queue", _step_with_batch_queue, otherwise=_step_by_step
    )
    UniProcExecutor._init_executor = init_uniproc_executor
    MultiprocExecutor._init_executor = init_multiproc_executor
    VllmConfig.__post_init__ = post_init
    EngineArgs.create_engine_config = create_engine_config


def _step_with_batch_queue(original: Original, core: Any) -> Any:
    way = ahead_of(core.vllm_config)
    if way is None:
        return original()
    ahead = getattr(core, _STATE, None)
    if ahead is None:
        ahead = _ENGINES[way](core)
        setattr(core, _STATE, ahead)
    return ahead.step(original)


def _step_by_step(original: Original, core: Any) -> Any:
    """Never schedule while a step is under way: that is right for every step."""
    if core.batch_queue and ahead_of(core.vllm_config) is not None:
        return step_without_requests(original, core.scheduler)
    return original()


def _fills_in(worker: Any) -> bool:
    """In the worker: whether its model runner will fill in what the scheduler leaves open."""
    return are_installed(worker.model_runner)
