"""vLLM's asynchronous scheduling, for engines with our proposer, to which vLLM does not give it.

There the next step is scheduled while the one before it runs, so that nothing waits for the
scheduler. vLLM refuses that to drafters that need the sampled tokens on the CPU, as ours does, and
on the CPU to all. Two ways to have it all the same:

* `async_launch.py`, where engine core and model runner share a process and a device computes
  meanwhile: steps without drafts are launched before the tokens of those before are known;
* `async_schedule.py`, where the one model runner is a process of its own, as on the CPU: steps are
  scheduled with room for drafts, and the runner, which knows them first, resolves them.

The hooks of `Feature.ASYNC_SCHEDULING` in front end and engine core. vLLM checks a config in both,
and refuses it with asynchronous scheduling. So the front end, which knows what the user asked for,
only marks it, and the engine core reads the mark.
"""

import os
from collections.abc import Callable
from typing import Any

from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform

from reprise.engine_ext.compat.engine_state import mark_of, set_async_scheduling, set_mark
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.compat.hooks import drafter_of
from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import engine_config
from reprise.engine_ext.core.identity import hand_over, runs_on_v2, uses_our_proposer
from reprise.engine_ext.scheduling.async_launch import AsyncLaunch
from reprise.engine_ext.scheduling.async_schedule import AsyncSchedule, sleep_between_polls
from reprise.engine_ext.scheduling.modes import (
    AsyncMode,
    async_mode_of,
    has_cpu_optimizations,
    set_async_mode,
    set_cpu_optimizations,
    step_without_requests,
)

logger = init_logger(__name__)

_STEPPER = "async_stepper"

_STEPPERS: dict[AsyncMode, Callable[[Any], AsyncLaunch | AsyncSchedule]] = {
    AsyncMode.LAUNCH: AsyncLaunch,
    AsyncMode.SCHEDULE: AsyncSchedule,
}


def possible_mode(config: VllmConfig) -> AsyncMode | None:
    """Choose the mode by which an engine of this config gains; None: something in it forbids it."""
    parallel = config.parallel_config
    if (
        not uses_our_proposer(config)
        or runs_on_v2(config)  # vLLM's own
        or config.model_config is None
        or config.model_config.is_hybrid  # its states follow accepted drafts on the device
        or hand_over(config) is not None
        or config.scheduler_config.scheduler_cls is not None
        or not (parallel.world_size == parallel.data_parallel_size == 1)
    ):
        return None
    if is_overlapping():
        return AsyncMode.LAUNCH if parallel.distributed_executor_backend in (None, "uni") else None
    has_worker = parallel.distributed_executor_backend == "mp"
    is_wanted = has_worker and num_cores() > 1 and has_cpu_optimizations(config)
    return AsyncMode.SCHEDULE if is_wanted else None


def is_overlapping() -> bool:
    """Return whether the device works while the host does."""
    return not current_platform.is_cpu()


def num_cores() -> int:
    """Count the cores that engine core and worker may run on: with one, neither can while the
    other does."""
    return len(os.sched_getaffinity(0))


def create_engine_config(
    original: Callable[..., VllmConfig], args: Any, *others: Any, **kwargs: Any
) -> VllmConfig:
    """Run vLLM's, and mark the config of an engine that can schedule asynchronously."""
    config = original(args, *others, **kwargs)
    if uses_our_proposer(config):
        mark_cpu_optimizations(config)
    mode = possible_mode(config) if args.async_scheduling is None else None
    if mode is not None:
        set_async_mode(config, mode)
        logger.info("Reprise: %s.", mode.value)
    return config


def mark_cpu_optimizations(config: VllmConfig) -> None:
    """Note in a config whether its engine is to have them."""
    try:
        wanted = engine_config(config).engine.cpu_optimizations
    except ValueError:
        return  # the proposer, which reads the settings next, refuses to start
    set_cpu_optimizations(config, wanted)


def init_uniproc(original: Callable[..., None], executor: Any) -> None:
    """Run vLLM's for an executor in this process, with asynchronous scheduling where marked."""
    if async_mode_of(executor.vllm_config) is AsyncMode.LAUNCH:
        set_async_scheduling(executor.vllm_config, True)
    original(executor)


def init_multiproc(original: Callable[..., None], executor: Any) -> None:
    """Run vLLM's for worker processes; schedule asynchronously if the worker can follow."""
    original(executor)
    if async_mode_of(executor.vllm_config) is not AsyncMode.SCHEDULE:
        return
    # Set only now: the worker has its copy, and goes on step by step.
    if executor.collective_rpc(_resolves_drafts) == [True]:
        set_async_scheduling(executor.vllm_config, True)
        sleep_between_polls(executor.response_mqs)
    else:
        set_async_mode(executor.vllm_config, None)


def _resolves_drafts(worker: Any) -> bool:
    """In the worker: return whether its model runner resolves what the scheduler leaves open."""
    is_applied = registry.is_applied(Feature.ASYNC_SCHEDULING, Role.WORKER)
    return is_applied and drafter_of(worker.model_runner) is not None


def check_config(original: Callable[..., None], config: Any) -> None:
    """Run vLLM's check, which the engine core runs once more when it is ready."""
    was_async = async_mode_of(config) is not None and config.scheduler_config.async_scheduling
    if was_async:
        set_async_scheduling(config, False)
    original(config)
    if was_async:
        set_async_scheduling(config, True)


def step_with_batch_queue(original: Original, core: Any) -> Any:
    """Run vLLM's step as the engine's mode has it."""
    mode = async_mode_of(core.vllm_config)
    if mode is None:
        return original()
    stepper = mark_of(core, _STEPPER)
    if stepper is None:
        stepper = _STEPPERS[mode](core)
        set_mark(core, _STEPPER, stepper)
    return stepper.step(original)


def step_in_sync(original: Original, core: Any) -> Any:
    """Run vLLM's step without scheduling while another is in flight: that is right for any step."""
    if core.batch_queue and async_mode_of(core.vllm_config) is not None:
        return step_without_requests(original, core.scheduler)
    return original()
