"""A worker of a GPU run, seen from outside: started at once with others, asked for one by one."""

from __future__ import annotations

import os
import queue
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from reprise.engine_ext.cli.worker_process import WorkerProcess, cause_of, end_workers
from reprise.eval.gpu.gpu_worker import GpuJob, GpuOrder, GpuReply
from reprise.eval.gpu.methods import GpuMethod
from reprise.eval.gpu.step_log import environment_with_step_log
from reprise.eval.live.engine_environment import engine_environment

_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


class GpuEngineError(RuntimeError):
    """An engine that did not start or stopped; the message is one line."""


class GpuEngine:
    """A process that runs from `start` until `end_engines`."""

    def __init__(self, method: GpuMethod, job: GpuJob, step_log: Path | None = None) -> None:
        self.method = method
        self.runner = ""
        self.failure: str | None = None
        self.has_ended = False
        self._job = job
        self.step_log = step_log
        """Where its steps go, a row each; None: they are not recorded."""

    def start(self) -> None:
        """Start its process."""
        self.plugin = tempfile.TemporaryDirectory(prefix="reprise-plugin-")
        self.worker = WorkerProcess(
            "reprise.eval.gpu.gpu_worker", self._job, GpuReply, self._environment()
        )
        self.log_file = self.worker.log_file

    def _environment(self) -> Mapping[str, str]:
        given = {**_ENVIRONMENT, **os.environ, **self.method.environment}
        environment = engine_environment(given, with_reprise=self.method.is_ours)
        if self.step_log is None:
            return environment
        folder = Path(self.plugin.name)
        return environment_with_step_log(environment, folder, self.step_log)

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the engine is up.

        Raises:
            GpuEngineError: it failed, or takes longer.
        """
        self.runner = self._next(seconds).runner

    @property
    def note(self) -> str:
        """What is other than was asked for; empty if nothing is."""
        wanted = self.method.runner
        return f"asked for runner {wanted}" if wanted not in ("", self.runner) else ""

    def serve(self, order: GpuOrder, seconds: float) -> GpuReply:
        """Serve a workload.

        Raises:
            GpuEngineError: it failed, or takes longer; nothing more may be asked for.
        """
        # If it has ended, it has said why, or says nothing.
        self.worker.send_line(msgspec.json.encode(order))
        return self._next(seconds)

    def _next(self, seconds: float) -> GpuReply:
        began_s = time.monotonic()
        try:
            reply = self.worker.messages.get(timeout=max(0.0, seconds))
        except queue.Empty:
            waited_s = time.monotonic() - began_s
            raise self._failed(f"no answer within {waited_s:.0f} s") from None
        if reply is None:
            raise self._failed("the engine's process ended without a word")
        if reply.failure is not None:
            raise self._failed(cause_of(reply.failure, self.log_file))
        return reply

    def _failed(self, reason: str) -> GpuEngineError:
        self.failure = reason
        return GpuEngineError(f"{self.method.name}: {reason}")


def end_engines(engines: Sequence[GpuEngine]) -> None:
    """End their processes side by side, with all that these have started; twice is as good as
    once."""
    left = [engine for engine in engines if not engine.has_ended]
    end_workers([engine.worker for engine in left])
    for engine in left:
        engine.plugin.cleanup()
        engine.has_ended = True
