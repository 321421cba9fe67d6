"""Engines of several methods at once, of which one runs while the others stand still.

A shared machine's speed changes by tens of percent within minutes. Engines measured one after
another each get a different machine; engines that take turns of a second get the same one.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from reprise.engine_ext.cli.worker_process import WorkerProcess, cause_of, end_workers
from reprise.eval.live.engine_environment import engine_environment
from reprise.eval.live.live_worker import LiveJob, LiveMessage, LiveOutcome
from reprise.eval.report.progress import Stage

_TURN_S = 1.0
_LOOK_EVERY_S = 0.1
_EXIT_S = 60.0
# What an engine reads, unless the user has said otherwise: a small one, that calls nobody, and that
# may stand still in the midst of a step for as long as the others take to start.
_ENGINE_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "86400",
}


class LiveError(RuntimeError):
    """An engine that could not be started or that stopped; the message is one line."""


def serve(
    jobs: Sequence[LiveJob],
    *,
    on_request: Callable[[], None] = lambda: None,
    on_start: Callable[[], None] = lambda: None,
    start_at_once: int = 1,
) -> list[LiveOutcome]:
    """Serve each job with an engine in a process of its own.

    One job's engine has the machine to itself. Those of several take turns, the one that has
    finished the fewest timed requests next, so all go through the trace side by side; their
    `wall_s` are what their own turns took.

    Args:
        jobs: At least one.
        on_request: Called for each request that any of them finishes.
        on_start: Called for each engine that is there.
        start_at_once: So many engines start side by side. On a GPU more than one is too many:
            each looks how much memory is free.

    Raises:
        LiveError: An engine failed.
    """
    turn_s = _TURN_S if len(jobs) > 1 else None
    engines = [
        _Engine(msgspec.structs.replace(job, num_engines=len(jobs)), on_request) for job in jobs
    ]
    try:
        for engine in _start(engines, at_once=start_at_once):
            on_start()
            if turn_s is not None:
                engine.stop()
        for engine in engines:
            engine.get_ready()
            if turn_s is not None:
                engine.stop()
        for engine in engines:
            engine.let_go()
        while waiting := [engine for engine in engines if not engine.has_served]:
            min(waiting, key=lambda engine: engine.num_finished).take_turn(turn_s)
        for engine in engines:
            engine.go_on()  # all end side by side
        return [engine.outcome() for engine in engines]
    finally:
        end_workers([engine.worker for engine in engines if engine.worker is not None])


def serve_in_stages(stage: Stage, name: str, jobs: Sequence[LiveJob]) -> list[LiveOutcome]:
    """Serve each job as `serve` does, with progress: engines that start, and then requests.

    Raises:
        LiveError: An engine failed.
    """
    waiting = len(jobs)
    num_requests = sum(
        len(job.rows) + len(job.more_passes) * sum(not row.warm for row in job.rows) for job in jobs
    )
    with contextlib.ExitStack() as shown:
        tick = shown.enter_context(stage(f"{name}, engines that have started", waiting))

        def on_start() -> None:
            nonlocal tick, waiting
            tick()
            waiting -= 1
            if not waiting:
                shown.close()
                tick = shown.enter_context(stage(name, num_requests))

        # The function of the stage that it is called in.
        return serve(
            jobs,
            on_request=lambda: tick(),
            on_start=on_start,
            start_at_once=engines_at_once(),
        )


def engines_at_once() -> int:
    """Return how many engines may start side by side: as many as there are cores, without a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def _start(engines: Sequence[_Engine], *, at_once: int) -> Iterator[_Engine]:
    """Start all engines, so many at a time; yields each that is there.

    Ours first: where its code is compiled for the first time, it takes as long as several others.
    """
    waiting = sorted(engines, key=lambda engine: engine.uses_reprise, reverse=True)
    starting: list[_Engine] = []
    while waiting or starting:
        while waiting and len(starting) < at_once:
            starting.append(engine := waiting.pop(0))
            engine.start()
        for engine in list(starting):
            engine.listen(_LOOK_EVERY_S)
            if engine.has_started:
                starting.remove(engine)
                yield engine


class _Engine:
    """A worker process, `reprise.eval.live.live_worker`, and what it has said so far."""

    def __init__(self, job: LiveJob, on_request: Callable[[], None]) -> None:
        self._job, self._on_request = job, on_request
        self.worker: WorkerProcess[LiveMessage] | None = None
        """None: not started yet."""
        self._outcome: LiveOutcome | None = None
        self._turns_s = 0.0
        self._has_stopped = False
        self.has_started = self.is_ready = self.has_served = False
        self.num_finished = 0

    def start(self) -> None:
        """Start its process."""
        self.worker = WorkerProcess(
            "reprise.eval.live.live_worker", self._job, LiveMessage, self._environment()
        )

    def _environment(self) -> dict[str, str]:
        variables = {**_ENGINE_ENVIRONMENT, **os.environ}
        if not self._job.cpu_optimizations:
            variables["REPRISE_ENGINE__CPU_OPTIMIZATIONS"] = "false"
        if not self._job.drafts:
            variables["REPRISE_FEATURES__DRAFTS"] = "false"
        return engine_environment(variables, with_reprise=self._job.uses_reprise)

    @property
    def _started(self) -> WorkerProcess[LiveMessage]:
        assert self.worker is not None
        return self.worker

    @property
    def uses_reprise(self) -> bool:
        """Whether our proposer drafts."""
        return self._job.uses_reprise

    def listen(self, timeout_s: float | None) -> None:
        """Take in the next thing that it says, if it comes in time."""
        with contextlib.suppress(queue.Empty):
            self._take_in(self._started.messages.get(timeout=timeout_s))

    def get_ready(self) -> None:
        """Run until the warm requests are learned."""
        self._started.send_line()
        self.go_on()
        self._run_until(lambda: self.is_ready)

    def let_go(self) -> None:
        """Let it begin with the timed requests, as soon as it runs."""
        self._started.send_line()

    def stop(self) -> None:
        """Let it stand still."""
        self._started.signal(signal.SIGSTOP)
        self._has_stopped = True

    def go_on(self) -> None:
        """Let it run, if it stands still."""
        if self._has_stopped:
            self._started.signal(signal.SIGCONT)
            self._has_stopped = False

    def take_turn(self, turn_s: float | None) -> None:
        """Run for so long, or until the timed requests are served."""
        began_s = time.perf_counter()
        self.go_on()
        self._run_until(lambda: self.has_served, None if turn_s is None else began_s + turn_s)
        if turn_s is not None:
            self.stop()
        self._turns_s += time.perf_counter() - began_s

    def outcome(self) -> LiveOutcome:
        """What it reports in the end, when it has ended."""
        self.go_on()
        self._run_until(lambda: self._outcome is not None)
        assert self._outcome is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._started.process.wait(_EXIT_S)
        self._outcome.wall_s = self._turns_s
        return self._outcome

    def _run_until(self, done: Callable[[], bool], deadline_s: float | None = None) -> None:
        """Take in what it says until `done`, or the deadline by `perf_counter`."""
        while not done():
            left_s = None if deadline_s is None else deadline_s - time.perf_counter()
            if left_s is not None and left_s <= 0:
                return
            self.listen(left_s)

    def _take_in(self, message: LiveMessage | None) -> None:
        failure = message.failure if message else "the engine's process ended without a word"
        if failure is not None:
            raise LiveError(f"model {self._job.model}: {cause_of(failure, self._started.log_file)}")
        assert message is not None
        self.has_started |= message.has_started
        self.is_ready |= message.is_ready
        self.has_served |= message.has_served
        self._outcome = message.outcome or self._outcome
        if message.request_finished:
            self.num_finished += self.is_ready
            self._on_request()
