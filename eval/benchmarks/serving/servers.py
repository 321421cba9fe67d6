"""Servers of ours that differ in one thing, each with a Redis of its own."""

import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reprise.eval.benchmarks.serving.load import SPECULATIVE, Server
from reprise.eval.live.redis_server import RedisServer

_READY_WITHIN_S = 600.0
# Which of several API server processes answers is up to the kernel.
_TIMES_READY = 8


class Kind(NamedTuple):
    """What tells a server from the others."""

    options: Sequence[str] = ()
    """Of its command line."""
    settings: Mapping[str, str] = {}
    """Of ours, by the environment variable without its beginning."""


EXACT_HITS: dict[str, Kind] = {
    "exact hits off": Kind(settings={"SERVING__EXACT_HITS": "off"}),
    "in memory": Kind(settings={"SERVING__EXACT_HITS_FROM_OTHERS": "off"}),
    "in memory and Redis": Kind(),
}
ENGINES: dict[str, Kind] = {
    "one engine": Kind(),
    "two engines": Kind(("--data-parallel-size", "2")),
    "two API servers": Kind(("--api-server-count", "2")),
}


@contextlib.contextmanager
def started(model: str, kinds: Mapping[str, Kind], *, dtype: str) -> Iterator[dict[str, Server]]:
    """Start a server of each kind, side by side; yield them when all are ready, and end them."""
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, kind in kinds.items():
            redis = stack.enter_context(RedisServer())
            settings = {f"REPRISE_{key}": value for key, value in kind.settings.items()}
            server = Server(
                model,
                SPECULATIVE["reprise"],
                dtype=dtype,
                options=kind.options,
                environment={**settings, "REPRISE_RETRIEVAL__URL": redis.url},
            )
            stack.callback(server.stop)
            servers[name] = server
        for server in servers.values():
            server.wait()
            _wait_until_ready(server)
        yield servers


def _wait_until_ready(server: Server) -> None:
    """Wait until every process that answers says that all its components are ready.

    Raises:
        RuntimeError: one is not, in the end.
    """
    deadline_s = time.monotonic() + _READY_WITHIN_S
    times = 0
    while times < _TIMES_READY:
        health = _health(server)
        times = times + 1 if health["state"] == "ready" else 0
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"a server is not ready: {health}")
        if not times:
            time.sleep(0.5)


def _health(server: Server) -> dict[str, Any]:
    with urllib.request.urlopen(server.url + "/reprise/health") as reply:
        health: dict[str, Any] = json.load(reply)
    return health
