"""The engine core keeps off the cores that its workers are pinned to.

On the CPU, vLLM pins workers to cores and leaves the engine core, which waits for them in a loop,
free to run anywhere. On a machine of few cores, with retrieval busy on those that are left, it is
moved onto a worker's now and then, and the worker decodes at half speed meanwhile.

The hook of `Feature.CPU_PLACEMENT`, in the engine core.
"""

from collections.abc import Callable
from typing import Any

from vllm.platforms import current_platform

from reprise.engine_ext.core.identity import uses_our_proposer
from reprise.engine_ext.scheduling.modes import has_cpu_optimizations
from reprise.retrieval.host.pinned_cores import leave_cores, pinned_cores


def init_executor(original: Callable[..., None], executor: Any) -> None:
    """Start the workers as vLLM does, then leave the cores that they are pinned to."""
    original(executor)
    config = executor.vllm_config
    if current_platform.is_cpu() and uses_our_proposer(config) and has_cpu_optimizations(config):
        workers = executor.workers
        leave_cores({core for worker in workers for core in pinned_cores(worker.proc.pid)})
