"""What tests of retrieval share: a TCP proxy that delays and cuts."""

import pytest

from reprise.eval.live.redis_server import Proxy


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
