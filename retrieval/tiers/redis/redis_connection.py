"""The connection to Redis of one tier: alone, a cluster, or the master that Sentinel knows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from reprise.retrieval.api.redis_url import RedisUrl
from reprise.retrieval.api.tier_url import hide_secrets
from reprise.retrieval.tiers.redis.redis_clock import RedisClock
from reprise.retrieval.tiers.tier import TierError

_OF_CLUSTERS = (
    redis.exceptions.AskError,  # and MovedError, of what other nodes hold
    redis.exceptions.ClusterCrossSlotError,
    redis.exceptions.ClusterDownError,
)
_NO_CLUSTER = "Cluster mode is not enabled"


class RedisConnection:
    """Connects on first use; thread-safe.

    Args:
        parsed: Where to.
        timeout_s: Most seconds that one command waits for Redis.
    """

    def __init__(self, parsed: RedisUrl, *, timeout_s: float) -> None:
        self.is_cluster = parsed.is_cluster
        self.clock = RedisClock()
        """Right whenever a client is handed out."""
        self._parsed, self._timeout_s = parsed, timeout_s
        self._connected: Any = None
        self._sentinels: list[Any] = []
        self._lock = threading.Lock()

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Return the client of redis-py, connected; what it raises becomes a `TierError`, without
        secrets."""
        try:
            with self._lock:
                if self._connected is None:
                    self._connected = self._connect()
                client = self._connected
            self.clock.look(client)
            yield client
        except TierError:
            raise
        except Exception as error:  # a cluster's are no RedisError, and redis-py raises others too
            text = " ".join(f"redis: {type(error).__name__}: {error}".split()) + self._advice(error)
            raise TierError(hide_secrets(text, self._parsed.url)) from None

    def _advice(self, error: Exception) -> str:
        """Return what to do where the URL takes a cluster for a Redis alone, or the reverse."""
        if not self.is_cluster and isinstance(error, _OF_CLUSTERS):
            return ": this is a Redis Cluster, and its URL needs ?cluster=1"
        if self.is_cluster and _NO_CLUSTER in str(error):
            return ": this is no Redis Cluster, and its URL must be without cluster=1"
        return ""

    @contextmanager
    def transaction(self, client: Any) -> Iterator[tuple[Any, Any]]:
        """Return pipelines for the keys of namespaces and for those that all share, executed at the
        end.

        One and the same transaction, but on a cluster, where the former come first: what is
        announced is there.
        """
        pipe = client.pipeline(transaction=not self.is_cluster)
        notes = client.pipeline(transaction=False) if self.is_cluster else pipe
        yield pipe, notes
        pipe.execute()
        if notes is not pipe:
            notes.execute()

    def run_ids(self, client: Any) -> dict[str, str | None]:
        """Return what names the masters of a cluster, each until it is started again, by address;
        None for those that cannot be asked."""
        found: dict[str, str | None] = {}
        for node in client.get_primaries():
            found[node.name] = None
            with suppress(redis.RedisError):
                found[node.name] = client.info("server", target_nodes=node)["run_id"]
        return found

    def close(self) -> None:
        """Close it; it is opened anew when it is used again."""
        with self._lock:
            client, self._connected = self._connected, None
            sentinels, self._sentinels = self._sentinels, []
        for each in sentinels if client is None else (client, *sentinels):
            each.close()

    def _connect(self) -> Any:
        options: dict[str, Any] = {
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": self._timeout_s,
            "retry": Retry(NoBackoff(), 0),
        }
        if self.is_cluster:
            return redis.RedisCluster.from_url(self._parsed.url, **options)
        if self._parsed.service is not None:
            return self._connect_to_master(options)
        return redis.Redis.from_url(self._parsed.url, **options)

    def _connect_to_master(self, options: dict[str, Any]) -> Any:
        """Return a client that asks Sentinel for the master whenever it connects."""
        untyped: Any = redis
        given = untyped.connection.parse_url(self._parsed.url)
        for name in ("host", "port"):
            given.pop(name, None)
        is_tls = given.pop("connection_class", None) is redis.connection.SSLConnection
        tls = {"ssl": True} if is_tls else {}
        # Sentinel has users and passwords of its own; it is asked without.
        of_sockets = {k: v for k, v in given.items() if k.startswith(("ssl_", "socket_"))}
        asked = {**options, **of_sockets, **tls}
        sentinel = untyped.sentinel.Sentinel(list(self._parsed.sentinels), sentinel_kwargs=asked)
        self._sentinels = sentinel.sentinels
        return sentinel.master_for(self._parsed.service, **{**options, **given, **tls})
