"""From a URL to a tier."""

from __future__ import annotations

from reprise.retrieval.api.tier_url import check_url, sqlite_path
from reprise.retrieval.tiers.tier import Tier


def open_tier(
    url: str,
    *,
    ttl_s: float | None = None,
    stream_length: int = 50_000,
    max_bytes: int | None = None,
    max_namespaces: int | None = None,
    timeout_s: float | None = None,
) -> Tier | None:
    """Return the tier behind this process's memory; None for memory://, which has none.

    It is opened on first use: the file or Redis may be absent until then, and later.
    Without `max_bytes` and `max_namespaces` nothing leaves for want of room: that is for tools,
    which must not trim by bounds that are not the servers'. Without `timeout_s` each kind waits as
    long as it does by default.

    Raises:
        ValueError: An unknown kind of URL, or redis-py is missing.
    """
    scheme = check_url(url)
    if scheme == "memory":
        return None
    patience: dict[str, float] = {} if timeout_s is None else {"timeout_s": timeout_s}
    if scheme == "sqlite":
        from reprise.retrieval.tiers.sqlite_tier import SqliteTier

        return SqliteTier(
            sqlite_path(url),
            ttl_s=ttl_s,
            max_bytes=max_bytes,
            max_namespaces=max_namespaces,
            **patience,
        )
    from reprise.retrieval.tiers.redis.redis_tier import RedisTier

    return RedisTier(
        url,
        ttl_s=ttl_s,
        stream_length=stream_length,
        max_bytes=max_bytes,
        max_namespaces=max_namespaces,
        **patience,
    )
