"""Have the processes of a test run take less of the machine, which others of the run need.

* A start of vLLM is mostly imports. The garbage collector looks through hundreds of thousands of
  objects meanwhile, all of which stay: it runs less often. transformers reads what every installed
  package consists of: that is kept in a file for the next process.
* What vLLM spawns is forked instead of a process that has imported it already (`warm_starts.py`).
* Triton's interpreter does what it does at each call once (`quick_interpreter.py`).
* While an engine is busy, its engine core and its worker wait for one another in a loop that takes
  a core each: they sleep between looks.

What tests start is meant to compare questions by their words (`BY_WORDS`) where it is not asked for
more: an embedding model takes as long to load as an engine does, the rules for clauses half of it.

Besides, a server under test waits longer, where it is started with `PATIENT` in its environment,
for what a user's would rather go on without: the machine stands still for seconds.
"""

import contextlib
import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = "LIGHT_PROCESSES_FILE"
"""The environment variable with the path of that file, which the first process writes."""
ALLOCATIONS = 50_000  # before new objects are looked through; Python's own number: 700
QUEUES = "vllm.distributed.device_communicators.shm_broadcast"
WORKERS = "reprise.engine_ext.cli.worker_process"
SPAWNING = "vllm.utils.system_utils"  # asks Python to spawn what vLLM starts
INTERPRETER = "triton.runtime.interpreter"
PATIENT = "LIGHT_PROCESSES_PATIENT"
BY_WORDS = {
    "REPRISE_RETRIEVAL__EMBEDDING_MODEL": "lexical",
    "REPRISE_RETRIEVAL__CLAUSES": "false",
}
"""For the environment of what compares questions by their words, whole."""
WAITS: dict[str, dict[str, float]] = {
    "reprise.engine_ext.request.draft_counts_fetcher": {"_TIMEOUT_S": 60.0},
    "reprise.engine_ext.frontend.exact_forgetting": {"_TIER_WITHIN_S": 60.0},
    "reprise.engine_ext.frontend.shared_exact": {"_TIER_TIMEOUT_S": 30.0},
}
"""By module: seconds that it waits for what may be missing from a reply."""
_SLEEP_S = 1e-4

read_packages = importlib.metadata.packages_distributions


def begin() -> None:
    """Have this process do so."""
    gc.set_threshold(ALLOCATIONS, 20, 20)
    if FILE in os.environ:
        importlib.metadata.packages_distributions = packages_distributions
    changes = {
        QUEUES: _sleep_between_looks,
        SPAWNING: _fork,
        WORKERS: _fork_workers,
        INTERPRETER: _interpret_quickly,
    }
    for name, change in changes.items():
        if name not in sys.modules:
            sys.meta_path.insert(0, _Change(name, change))
    for name in WAITS:
        if name not in sys.modules:
            sys.meta_path.insert(0, _Change(name, _wait_longer))


def packages_distributions() -> Mapping[str, list[str]]:
    """Return what the function of this name returns, from the file if it is there."""
    file = Path(os.environ[FILE])
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
        return known
    found = read_packages()
    with contextlib.suppress(OSError):
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(found), encoding="utf-8")
        scratch.replace(file)
    return found


def sleep_briefly() -> None:
    """Stand in for the function with which vLLM lets others run between two looks into a queue."""
    time.sleep(_SLEEP_S)


def _sleep_between_looks(queues: ModuleType) -> None:
    if hasattr(queues, "sched_yield"):  # other versions of vLLM may wait in other ways
        queues.sched_yield = sleep_briefly


def _fork(_: ModuleType) -> None:
    import warm_starts

    warm_starts.begin()


def _fork_workers(workers: ModuleType) -> None:
    import warm_starts

    warm_starts.begin_with_workers(workers)


def _interpret_quickly(interpreter: ModuleType) -> None:
    import quick_interpreter

    quick_interpreter.begin(interpreter)


def _wait_longer(module: ModuleType) -> None:
    if PATIENT in os.environ:  # when it is imported: a forked process has another environment
        for name, seconds in WAITS[module.__name__].items():
            if not isinstance(vars(module)[name], float):
                raise AttributeError(f"{module.__name__}.{name} is no number of seconds")
            setattr(module, name, seconds)


class _Change(MetaPathFinder):
    """Finds one module, once, and changes it after it has been executed."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._change = change

    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> Any:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
