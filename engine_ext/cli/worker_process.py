"""An engine's worker process, from both sides: its job goes in as a file, its messages come out of
a pipe.

Light imports: vLLM's processes import their parent's main module once more, and vLLM 0.32's CPU
worker does not start where that has brought in numba.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import msgspec

from reprise.retrieval.host.process_end import end_groups

MessageT = TypeVar("MessageT", bound=msgspec.Struct)


class WorkerProcess(Generic[MessageT]):
    """A process that runs a module with a job; who starts it ends it by `end_workers`.

    Args:
        module: takes the file of the job, and the descriptor of a pipe for messages.
        job: what it is to do.
        message: the type of what it says, a line each.
        environment: all of it.
    """

    def __init__(
        self,
        module: str,
        job: msgspec.Struct,
        message: type[MessageT],
        environment: Mapping[str, str],
    ) -> None:
        self.messages: queue.SimpleQueue[MessageT | None] = queue.SimpleQueue()
        """What it has said and nobody has taken yet; None: it will say no more."""
        self._message = message
        self._folder = tempfile.TemporaryDirectory(prefix="reprise-worker-")
        job_file = Path(self._folder.name) / "job.json"
        job_file.write_bytes(msgspec.json.encode(job))
        self.log_file = Path(self._folder.name) / "engine.log"
        """What it and its engine print."""
        reading, writing = os.pipe()
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(job_file), str(writing)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                env=environment,
                # With all that it starts it is stopped as one. Should this process die, it ends
                # itself; not a session of its own, for the kernel then ends what stands still.
                process_group=0,
            )
        os.close(writing)
        threading.Thread(
            target=self._listen,
            args=(os.fdopen(reading, "rb"),),
            name="reprise-worker",
            daemon=True,
        ).start()

    def send_line(self, line: bytes = b"") -> None:
        """Write a line to its standard input, unless it has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()

    def close_input(self) -> None:
        """End its standard input, upon which it ends itself with all that it has started."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it has started, if anything of it is there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Reap it and remove its files, once it has ended."""
        self.process.wait()
        self.close_input()
        self._folder.cleanup()

    def _listen(self, pipe: IO[bytes]) -> None:
        try:
            with pipe:
                for line in pipe:
                    self.messages.put(msgspec.json.decode(line, type=self._message))
        finally:
            self.messages.put(None)


def end_workers(workers: Sequence[WorkerProcess[Any]]) -> None:
    """End processes and all that they have started, side by side: within 2 s, and at once where
    they have ended by themselves."""
    end_groups([worker.process.pid for worker in workers])
    for worker in workers:
        worker.close()


@contextmanager
def message_pipe(descriptor: int) -> Iterator[Callable[[msgspec.Struct], None]]:
    """Yield, in the worker process, the function that sends a message."""
    os.set_inheritable(descriptor, False)  # the engine's processes must not keep the pipe open
    with os.fdopen(descriptor, "wb") as pipe:

        def send(message: msgspec.Struct) -> None:
            pipe.write(msgspec.json.encode(message) + b"\n")
            pipe.flush()

        yield send


def reason_of(error: Exception) -> str:
    """One line: what a validator objected to, else the first line of the message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    objections = [line.strip() for line in lines if "Value error, " in line]
    if not objections:
        return lines[0]
    return objections[0].partition(" [type=")[0].removeprefix("Value error, ")


def cause_of(message: str, log: Path) -> str:
    """The message, or, where vLLM only says that the engine failed, the last error in its log."""
    if "Engine core initialization failed" not in message or not log.is_file():
        return message
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if "Error: " in line and "Engine core init" not in line]
    return errors[-1].split("] ", 1)[-1].strip() if errors else message
