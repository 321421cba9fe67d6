"""However a benchmark ends, its engines end with it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from reprise.eval.live import engine_turns
from reprise.eval.live.engine_turns import _start, serve_in_stages
from reprise.eval.live.live_worker import LiveJob
from reprise.eval.replay.traces import TraceRow

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
# A shell starts what runs in the background with SIGINT ignored, and so would this.
BENCHMARK = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from reprise.eval.live.engine_turns import serve
from reprise.eval.live.live_worker import LiveJob
from reprise.retrieval.host.process_end import leaving_on_sigterm
with leaving_on_sigterm():
    serve([LiveJob(model="m", speculative_config=None, rows=[], concurrency=1, seed=0)])
"""


def _are_gone(pids: list[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


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
        deadline_s = time.monotonic() + 200
        while not (started.is_file() and started.read_text().endswith("\n")):
            assert time.monotonic() < deadline_s
            assert benchmark.poll() is None
            time.sleep(0.05)
        engine = [int(pid) for pid in started.read_text().split()]
        assert not _are_gone(engine)
        benchmark.send_signal(ended_by)
        status = benchmark.wait(100)
    finally:
        benchmark.kill()
    assert status != 0
    if ended_by == signal.SIGTERM:
        assert status == 128 + signal.SIGTERM
    deadline_s = time.monotonic() + 60
    while not _are_gone(engine):
        assert time.monotonic() < deadline_s, "an engine is left"
        time.sleep(0.05)


class StartingEngine:
    """One that has started after it was listened to so many times."""

    running: list[str]
    most_at_once: int

    def __init__(self, name: str, listens: int) -> None:
        self.name, self._listens = name, listens
        self.uses_reprise = name == "ours"
        self.has_started = False

    def start(self) -> None:
        type(self).running.append(self.name)
        type(self).most_at_once = max(self.most_at_once, len(self.running))

    def listen(self, _: float) -> None:
        self._listens -= 1
        if not self._listens:
            self.has_started = True
            self.running.remove(self.name)


@pytest.mark.parametrize(
    ("at_once", "order"),
    [(1, ["ours", "none", "suffix"]), (2, ["none", "suffix", "ours"])],
)
def test_engines_start_side_by_side_and_ours_first(at_once: int, order: list[str]) -> None:
    """The one that takes longest does not wait for the others, nor they for it."""
    StartingEngine.running, StartingEngine.most_at_once = [], 0
    engines: list[Any] = [
        StartingEngine(name, listens) for name, listens in (("none", 2), ("suffix", 2), ("ours", 9))
    ]
    started = [engine.name for engine in _start(engines, at_once=at_once)]
    assert started == order
    assert StartingEngine.most_at_once == at_once


def test_progress_tells_engines_that_start_from_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int, int]] = []

    @contextlib.contextmanager
    def stage(name: str, total: int) -> Iterator[Callable[[], None]]:
        ticks: list[None] = []
        yield lambda: ticks.append(None)
        shown.append((name, total, len(ticks)))

    def serve(jobs: Any, *, on_request: Any, on_start: Any, start_at_once: int) -> list[Any]:
        assert start_at_once > 0
        for _ in jobs:
            on_start()
        for _ in range(7):
            on_request()
        return []

    monkeypatch.setattr(engine_turns, "serve", serve)
    rows = [TraceRow(prompt="p", response="r", warm=warm) for warm in (True, False)]
    job = LiveJob(model="m", speculative_config=None, rows=rows, concurrency=1, seed=0)
    again = LiveJob(
        model="m", speculative_config=None, rows=rows, concurrency=2, seed=0, more_passes=[1, 2]
    )
    assert serve_in_stages(stage, "t: none, ngram", [job, again]) == []
    starting, serving = shown
    assert starting == ("t: none, ngram, engines that have started", 2, 2)
    assert serving == ("t: none, ngram", 2 + 2 + 2, 7)
