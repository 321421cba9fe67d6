"""A GPU run: its time, its engines, what it has measured."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from reprise.eval.gpu.gpu_engine import GpuEngine, GpuEngineError, end_engines
from reprise.eval.gpu.gpu_rows import GpuRows
from reprise.eval.gpu.gpu_worker import GpuJob, GpuOrder
from reprise.eval.gpu.methods import GpuMethod
from reprise.eval.gpu.workloads import Plan, Workload
from reprise.eval.replay.traces import TraceRow
from reprise.eval.report.results_csv import ROOT

_KERNELS_S = 100.0
_START_S = 240.0
_LAST_S = 8.0  # to end all engines
_WARM_AT_ONCE = 32


class GpuRun:
    """One run: its time, its engines, its rows."""

    def __init__(
        self,
        *,
        out: Path,
        rows: GpuRows,
        deadline_s: float,
        max_tokens: int,
        logs_steps: bool = False,
    ) -> None:
        self._began_s = time.monotonic()
        self._logs_steps = logs_steps
        self._out, self._rows = out, rows
        self._deadline_s, self._max_tokens = deadline_s, max_tokens
        self._references: dict[str, list[list[int]]] = {}
        self.missing: Counter[str] = Counter()
        """Workloads that were not measured, by method."""

    @property
    def left_s(self) -> float:
        """Seconds until the engines have to end."""
        return self._deadline_s - _LAST_S - (time.monotonic() - self._began_s)

    def say(self, text: str) -> None:
        """Print a line, at once, with the seconds since the start."""
        print(f"[{time.monotonic() - self._began_s:6.1f} s] {text}", flush=True)

    @contextlib.contextmanager
    def checking_kernels(
        self, commands: Sequence[Sequence[str]], *, machine: str
    ) -> Iterator[None]:
        """Run the checks of kernels meanwhile, unless a run before this one has found nothing wrong
        on this machine."""
        passed = self._out / "kernels.passed"
        if passed.exists() and passed.read_text() == machine:
            self.say(f"the kernels were found right on {machine} before")
            yield
            return
        checks = threading.Thread(target=self._check_kernels, args=(commands, passed, machine))
        checks.start()
        try:
            yield
        finally:
            checks.join()

    def _check_kernels(self, commands: Sequence[Sequence[str]], passed: Path, machine: str) -> None:
        results = [self.run_command(command, "kernels.log", _KERNELS_S) for command in commands]
        if all(results):
            passed.write_text(machine)

    def run_command(self, command: Sequence[str], log_name: str, limit_s: float) -> bool:
        """Run a command of this checkout; what it prints goes to a file; return whether it did not
        fail."""
        what = " ".join(command[1:])
        self.say(what)
        with (self._out / log_name).open("a+", errors="replace") as log:
            before = log.tell()
            try:
                limit_s = max(1.0, min(limit_s, self.left_s))
                done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=limit_s)
                status = done.returncode
            except subprocess.TimeoutExpired:
                status = 124
            log.seek(before)
            # How much was checked, and how much was skipped, is what such commands say last.
            last = next((line for line in reversed(log.readlines()) if line.strip()), "no word")
        self.say(f"status {status} of {what}; see {log_name}: {last.strip()}")
        return status == 0

    @contextlib.contextmanager
    def engines(
        self, methods: Sequence[GpuMethod], jobs: Sequence[GpuJob]
    ) -> Iterator[list[GpuEngine]]:
        """All engines, started at once; those that do not come up are ended, and say why."""
        started: list[GpuEngine] = []
        self.say(f"starting engines: {', '.join(method.name for method in methods)}")
        try:
            for method, job in zip(methods, jobs, strict=True):
                engine = GpuEngine(method, job, self._step_log_of(method))
                engine.start()
                started.append(engine)
            until_s = time.monotonic() + min(_START_S, self.left_s)
            for engine in started:
                self._get_ready(engine, until_s)
            try:
                yield started
            finally:
                for engine in started:
                    self._keep_log(engine)
                    self._look_for_steps(engine)
        finally:
            end_engines(started)

    def _step_log_of(self, method: GpuMethod) -> Path | None:
        return self._out / f"{method.name}.steps.csv" if self._logs_steps else None

    def _get_ready(self, engine: GpuEngine, until_s: float) -> None:
        try:
            engine.wait_until_ready(until_s - time.monotonic())
            about = "; ".join(filter(None, (f"on model runner {engine.runner}", engine.note)))
            self.say(f"{engine.method.name} is up, {about}")
        except GpuEngineError as error:
            self.say(f"no engine: {error}")
            # What goes on starting would take from the machine that the others are measured on.
            self._keep_log(engine)
            end_engines([engine])

    def _look_for_steps(self, engine: GpuEngine) -> None:
        log = engine.step_log
        if log is not None and (not log.exists() or len(log.read_text().splitlines()) < 2):
            self.say(f"no step of {engine.method.name} was logged")

    def _keep_log(self, engine: GpuEngine) -> None:
        if engine.has_ended:
            return
        with contextlib.suppress(OSError):
            lines = engine.log_file.read_text(errors="replace").splitlines()[-1000:]
            (self._out / f"{engine.method.name}.log").write_text("\n".join(lines))

    def measure(self, engines: Sequence[GpuEngine], plan: Plan) -> None:
        """Serve all workloads, as far as time allows."""
        for workload in plan.cold:
            self._serve_all(engines, workload)
        if any(not self._is_done(engine, w) for engine in engines for w in plan.warm):
            for engine in engines:
                self._warm(engine, plan.warm_rows)
        for workload in plan.warm:
            self._serve_all(engines, workload)

    def _is_done(self, engine: GpuEngine, workload: Workload) -> bool:
        return self._rows.is_done(engine.method.name, workload)

    def _warm(self, engine: GpuEngine, rows: Sequence[TraceRow]) -> None:
        if engine.failure is not None:
            return
        order = GpuOrder(rows=list(rows), concurrency=_WARM_AT_ONCE, max_tokens=self._max_tokens)
        try:
            reply = engine.serve(order, self.left_s)
            self.say(
                f"{engine.method.name} has {len(rows)} warm answers, {reply.wall_s:.1f} s"
                f"{reply.note and f': {reply.note}'}"
            )
        except GpuEngineError as error:
            self.say(str(error))

    def _serve_all(self, engines: Sequence[GpuEngine], workload: Workload) -> None:
        for engine in engines:
            name = engine.method.name
            can_serve = engine.failure is None and self.left_s > 0
            # Outputs without drafts are needed again, to compare with.
            if self._is_done(engine, workload) and not (name == "none" and can_serve):
                continue
            if engine.failure is not None:
                self.missing[name] += 1
                self._rows.add_failure(name, workload, engine.failure)
                continue
            if not can_serve:
                self.missing[name] += 1
                self.say(f"no time is left for {workload.name}, {name}")
                continue
            self._serve(engine, workload)

    def _serve(self, engine: GpuEngine, workload: Workload) -> None:
        name = engine.method.name
        order = GpuOrder(
            rows=list(workload.rows),
            concurrency=workload.concurrency,
            max_tokens=self._max_tokens,
        )
        try:
            reply = engine.serve(order, self.left_s)
        except GpuEngineError as error:
            self.say(f"{workload.name}: {error}")
            if not self._is_done(engine, workload):  # else only what others are compared with
                self.missing[name] += 1
                self._rows.add_failure(name, workload, engine.failure or "")
            return
        if name == "none":
            self._references[workload.name] = reply.output_token_ids
        reference = self._references.get(workload.name)
        row = self._rows.add(name, engine.runner, workload, reply, reference, engine.note)
        self.say(
            f"{workload.name}, {name}: {row['tokens_per_s']} tokens/s, {row['to_none']} to none, "
            f"MAL {row['mean_acceptance_length']}, drafted {row['drafted_per_step']}, identical "
            f"{row.get('identical_outputs', '?')} of {row['requests']}{row['note'] and '; '}"
            f"{row['note']}"
        )

    def trace_step(self, engines: Sequence[GpuEngine], rows: Sequence[TraceRow]) -> None:
        """Have vLLM's profiler record a few steps of an engine of ours."""
        drafting = [e for e in engines if e.failure is None and e.method.is_ours]
        if not drafting or self.left_s < 0:
            self.say("no step of Reprise is traced")
            return
        folder = self._out / "trace"
        before = _files_in(folder)
        order = GpuOrder(
            rows=list(rows), concurrency=len(rows), max_tokens=self._max_tokens, is_profiled=True
        )
        try:
            drafting[0].serve(order, self.left_s)
        except GpuEngineError as error:
            self.say(f"no trace: {error}")
            return
        if _files_in(folder) > before:
            self.say(f"a step of {drafting[0].method.name} is traced in {folder}")
        else:
            self.say(f"no trace: vLLM's profiler has written nothing to {folder}")


def _files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))
