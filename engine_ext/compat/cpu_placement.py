"""The engine core keeps off the cores that its workers are pinned to.

On the CPU, vLLM pins workers to cores and leaves the engine core, which waits for them in a loop,
free to run anywhere. On a machine of few cores, with retrieval busy on those that are left, it is
moved onto a worker's now and then, and the worker decodes at half speed meanwhile.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from reprise.engine_ext.core.identity import uses_our_proposer
from reprise.retrieval.host.pinned_cores import leave_cores, pinned_cores


def install() -> None:
    """In the engine core: wrap what starts the workers."""
    original: Callable[..., None] = MultiprocExecutor._init_executor
    if getattr(original, "_reprise_leaves_cores", False):
        return

    @wraps(original)
    def init_executor(self: Any) -> None:
        original(self)
        if current_platform.is_cpu() and uses_our_proposer(self.vllm_config):
            leave_cores({core for worker in self.workers for core in pinned_cores(worker.proc.pid)})

    init_executor._reprise_leaves_cores = True  # type: ignore[attr-defined]
    MultiprocExecutor._init_executor = init_executor
