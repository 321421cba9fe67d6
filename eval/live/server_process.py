"""A server of one's own: a process on a port that can be killed, frozen and started again."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Self

_PORTS = (10_000, 22_000)


def free_port() -> int:
    """Return a free port whose number leaves room for a cluster's bus, 10000 above. It is none of
    those that connections get: it may be some time until a server listens there."""
    while True:
        port = random.SystemRandom().randrange(*_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class ServerProcess:
    """One process on a port, with a folder, both of which it keeps over restarts.

    Args:
        name: what messages call it.
        starts_within_s: how long it may take until it accepts connections.
    """

    def __init__(self, name: str, *, starts_within_s: float) -> None:
        self.port = free_port()
        self._name = name
        self._starts_within_s = starts_within_s
        self._folder = tempfile.mkdtemp(prefix="reprise-server-")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and wait until it accepts connections.

        Raises:
            RuntimeError: it cannot be started on this machine, or did not start.
        """
        self._process = subprocess.Popen(
            self._command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + self._starts_within_s
        while time.monotonic() < deadline_s and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                time.sleep(0.02)
                if self._process.poll() is None:  # and no other one that has taken its port
                    return self
            time.sleep(0.02)
        raise RuntimeError(f"{self._name} did not start within {self._starts_within_s:.0f} s")

    def _command(self) -> Sequence[str]:
        """Return what starts it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def kill(self) -> None:
        """End it at once; what it held in memory is gone."""
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
