"""On the CPU, the engine core keeps off the cores that its workers are pinned to."""

import contextlib
import os
from typing import Any

import psutil
import pytest

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores"),
]


def _cores_of_engine_core_and_worker(llm: Any) -> tuple[set[int], set[int]]:
    """The cores that any thread of the engine core may use, and those of its worker."""
    (engine_core,) = llm.llm_engine.engine_core.resources.engine_manager.processes
    threads = os.listdir(f"/proc/{engine_core.pid}/task")
    # A fork server may stand between them: see tests/light_processes.
    below = psutil.Process(engine_core.pid).children(recursive=True)
    workers = [child.pid for child in below if child.name().startswith("VLLM::Worker")]
    assert len(workers) == 1
    cores: set[int] = set()
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            cores |= os.sched_getaffinity(int(thread))
    return cores, os.sched_getaffinity(workers[0])


def test_the_engine_core_leaves_its_worker_alone(reprise_llm: Any) -> None:
    own, workers = _cores_of_engine_core_and_worker(reprise_llm)
    assert workers
    if (core := os.environ.get("VLLM_CPU_OMP_THREADS_BIND")) is not None:  # see tests/conftest.py
        assert workers == {int(core)}
    assert own == os.sched_getaffinity(0) - workers


def test_without_our_proposer_nothing_is_moved(plain_llm: Any) -> None:
    own, workers = _cores_of_engine_core_and_worker(plain_llm)
    assert workers < own == os.sched_getaffinity(0)
