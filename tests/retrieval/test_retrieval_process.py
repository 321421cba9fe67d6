"""Where the retrieval process runs."""

import os
import subprocess
import sys

import pytest

# As vLLM pins a worker on the CPU: by affinity, and by OpenMP's variable for what it starts.
_OWNER = """
import os, pathlib, time
import torch
core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
os.environ["GOMP_CPU_AFFINITY"] = str(core)
openmp = sorted(pathlib.Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
os.environ["LD_PRELOAD"] = str(openmp[0])
from reprise.retrieval import RetrievalConfig
from reprise.retrieval.process_retriever import ProcessRetriever
retriever = ProcessRetriever(RetrievalConfig())
while retriever.health().state != "ready":
    time.sleep(0.1)
retriever.submit("r", namespace="", text="Where is my parcel?")
while retriever.poll("r") is None:
    time.sleep(0.01)
threads = [int(thread) for thread in os.listdir(f"/proc/{retriever.pid}/task")]
cores = set.union(*(os.sched_getaffinity(thread) for thread in threads))
retriever.close()
print(*sorted(cores))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_it_leaves_the_cores_of_a_pinned_owner() -> None:
    free = os.sched_getaffinity(0)
    said = subprocess.run(
        [sys.executable, "-c", _OWNER], capture_output=True, text=True, check=True, timeout=120
    )
    assert {int(core) for core in said.stdout.split()} == free - {min(free)}
