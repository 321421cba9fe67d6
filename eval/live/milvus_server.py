"""A real Milvus Lite of one's own, served on a port by a process that can be killed and frozen."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reprise.eval.live.redis_server import free_port

_STARTS_WITHIN_S = 60.0


def is_milvus_installed() -> bool:
    """Return whether pymilvus and Milvus Lite can be imported here."""
    return all(importlib.util.find_spec(name) for name in ("pymilvus", "milvus_lite"))


class MilvusServer:
    """One Milvus Lite process on a port and with data that it keeps over restarts."""

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = tempfile.mkdtemp(prefix="reprise-milvus-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As `retrieval.search` names it."""
        return f"milvus://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of its process; None while it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def num_bytes(self) -> int:
        """Of its files."""
        return sum(path.stat().st_size for path in Path(self._folder).rglob("*") if path.is_file())

    def start(self) -> MilvusServer:
        """Start it and wait until it accepts connections.

        Raises:
            RuntimeError: it did not start.
        """
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", self._folder]
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return self
            time.sleep(0.05)
        raise RuntimeError(f"Milvus Lite did not start within {_STARTS_WITHIN_S:.0f} s")

    def __enter__(self) -> MilvusServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it where it is: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
