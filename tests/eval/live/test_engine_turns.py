"""However a benchmark ends, its engines end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

# Stands in for vLLM, so that an engine is there at once: a process that starts another, as vLLM's
# does, says so, and computes for ever.
ENGINE = """
import os, subprocess, sys, time

class LLM:
    def __init__(self, **_):
        engine_core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(os.environ["STARTED"], "w") as file:
            file.write(f"{os.getpid()} {engine_core.pid}\\n")
        time.sleep(600)
"""
BENCHMARK = """
from reprise.eval.live.engine_turns import serve
from reprise.eval.live.live_worker import LiveJob
serve([LiveJob(model="m", speculative_config=None, rows=[], concurrency=1, seed=0)])
"""


def _are_gone(pids: list[int]) -> bool:
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        for pid in pids
    )


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_who_ends_a_benchmark_ends_its_engines(tmp_path: Path, ended_by: signal.Signals) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(ENGINE)
    started = tmp_path / "started"
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    benchmark = subprocess.Popen(
        [sys.executable, "-c", BENCHMARK],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "STARTED": str(started)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + 90
        while not (started.is_file() and started.read_text().endswith("\n")):
            assert time.monotonic() < deadline_s
            assert benchmark.poll() is None
            time.sleep(0.05)
        engine = [int(pid) for pid in started.read_text().split()]
        assert not _are_gone(engine)
        benchmark.send_signal(ended_by)
        status = benchmark.wait(30)
    finally:
        benchmark.kill()
    assert status != 0
    if ended_by == signal.SIGTERM:
        assert status == 128 + signal.SIGTERM
    deadline_s = time.monotonic() + 30
    while not _are_gone(engine):
        assert time.monotonic() < deadline_s, "an engine is left"
        time.sleep(0.05)
