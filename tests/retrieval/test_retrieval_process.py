"""Where the retrieval process runs."""

import os
import subprocess
import sys

import pytest

# A parent that is free, an owner pinned to one core, and what the owner starts.
_OWNER = """
import os, subprocess, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
child = (
    "import os; from reprise.retrieval.retrieval_process import leave_pinned_cores;"
    "leave_pinned_cores(os.getppid()); print(*sorted(os.sched_getaffinity(0)))"
)
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_it_leaves_the_cores_of_a_pinned_owner() -> None:
    free = os.sched_getaffinity(0)
    said = subprocess.run(
        [sys.executable, "-c", _OWNER], capture_output=True, text=True, check=True, timeout=60
    )
    assert {int(core) for core in said.stdout.split()} == free - {min(free)}
