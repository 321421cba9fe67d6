"""A worker of a GPU run, seen from outside: started at once with others, asked for one by one."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec

from reprise.eval.gpu.gpu_worker import GpuJob, GpuOrder, GpuReply
from reprise.eval.gpu.methods import GpuMethod
from reprise.eval.live.engine_environment import engine_environment
from reprise.eval.live.engine_turns import cause_of

_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
_END_S = 5.0


class GpuEngineError(RuntimeError):
    """An engine that did not start or stopped; the message is one line."""


class GpuEngine:
    """A context manager: the process runs inside it."""

    def __init__(self, method: GpuMethod, job: GpuJob) -> None:
        self.method = method
        self.runner = ""
        self.failure: str | None = None
        self._job = job
        self._replies: queue.SimpleQueue[GpuReply | None] = queue.SimpleQueue()

    def __enter__(self) -> GpuEngine:
        self._folder = tempfile.TemporaryDirectory(prefix="reprise-gpu-")
        job_file = Path(self._folder.name) / "job.json"
        job_file.write_bytes(msgspec.json.encode(self._job))
        self.log_file = Path(self._folder.name) / "engine.log"
        reading, writing = os.pipe()
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "reprise.eval.gpu.gpu_worker", str(job_file), str(writing)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                env=self._environment(),
                process_group=0,
            )
        os.close(writing)
        threading.Thread(
            target=self._listen, args=(os.fdopen(reading, "rb"),), name="reprise-gpu", daemon=True
        ).start()
        return self

    def _environment(self) -> Mapping[str, str]:
        given = {**_ENVIRONMENT, **os.environ, **self.method.environment}
        uses_reprise = "reprise." in str(self.method.speculative_config)
        return engine_environment(given, with_reprise=uses_reprise)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # upon which it ends itself with all that it started
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the engine is up.

        Raises:
            GpuEngineError: it failed, or takes longer.
        """
        self.runner = self._next(seconds).runner

    def serve(self, order: GpuOrder, seconds: float) -> GpuReply:
        """Serve a workload.

        Raises:
            GpuEngineError: it failed, or takes longer; nothing more may be asked for.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended, and has said why, or says nothing
        return self._next(seconds)

    def _next(self, seconds: float) -> GpuReply:
        began_s = time.monotonic()
        try:
            reply = self._replies.get(timeout=max(0.0, seconds))
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

    def _listen(self, pipe: IO[bytes]) -> None:
        try:
            with pipe:
                for line in pipe:
                    self._replies.put(msgspec.json.decode(line, type=GpuReply))
        finally:
            self._replies.put(None)
