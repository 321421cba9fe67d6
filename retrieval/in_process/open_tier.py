"""From a URL to a tier."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.tier_url import check_url, sqlite_path
from reprise.retrieval.tiers.late_tier import LateTier
from reprise.retrieval.tiers.tier import Tier, TierError


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

    Without `max_bytes` and `max_namespaces` nothing leaves for want of room: that is for tools,
    which must not trim by bounds that are not the servers'. Without `timeout_s` each kind waits as
    long as it does by default.

    Raises:
        ValueError: An unknown kind of URL, or redis-py is missing.
        TierError: The SQLite file cannot be opened. (Redis may be absent: it is tried later.)
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


def open_for_exact_hits(config: RetrievalConfig, *, timeout_s: float) -> Tier | None:
    """Return a tier to look answers for exact hits up in, opened on first use; None: there is none.

    Nothing is written through it: it trims by no bounds.

    Raises:
        ValueError: As `open_tier`.
    """
    if check_url(config.url) == "memory":
        return None
    open_configured = partial(open_tier, config.url, ttl_s=config.ttl_s, timeout_s=timeout_s)
    name = config.url.partition(":")[0]
    return LateTier(name, cast("Callable[[], Tier]", open_configured))


def open_now_or_later(config: RetrievalConfig) -> Tier | None:
    """Return the tier of a configuration; one that cannot be opened now is tried again later.

    Raises:
        ValueError: As `open_tier`.
    """
    open_configured = partial(
        open_tier,
        config.url,
        ttl_s=config.ttl_s,
        stream_length=config.stream_length,
        max_bytes=config.tier_bytes,
        max_namespaces=config.max_namespaces,
    )
    try:
        return open_configured()
    except TierError:  # the first use says why, and those after it try again
        name = config.url.partition(":")[0]
        return LateTier(name, cast("Callable[[], Tier]", open_configured))
