"""From a URL to a tier."""

from __future__ import annotations

import importlib.util
from urllib.parse import urlsplit

from .tier import Tier

_EXPECTED = "memory://, sqlite:///path, redis://host:port/0, rediss://... or unix://..."


def open_tier(
    url: str, *, ttl_s: float | None = None, look_up_s: float = 0.05, stream_length: int = 10_000
) -> Tier | None:
    """The tier behind this process's memory; None for memory://, which has none.

    Raises:
        ValueError: An unknown kind of URL, or redis-py is missing.
        TierError: The SQLite file cannot be opened. (Redis may be absent: it is tried later.)
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"memory", "sqlite", "redis", "rediss", "unix"}:
        raise ValueError(f"cache URL must be {_EXPECTED}; got {redact(url)!r}")
    if scheme == "memory":
        return None
    if scheme == "sqlite":
        from .sqlite_tier import SqliteTier

        # sqlite:///tmp/a.sqlite and sqlite:////tmp/a.sqlite are the same file, from the root.
        path = rest.lstrip("/")
        if not path or not rest.startswith("/"):
            raise ValueError(f"sqlite URL must be sqlite:///path from the root, got {url!r}")
        return SqliteTier("/" + path, ttl_s=ttl_s)
    if importlib.util.find_spec("redis") is None:
        raise ValueError("redis:// needs redis-py: pip install 'reprise[redis]'")
    from .redis_tier import RedisTier

    return RedisTier(url, ttl_s=ttl_s, timeout_s=look_up_s, stream_length=stream_length)


def redact(url: str) -> str:
    """The URL without its password."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":***@") if password else url
