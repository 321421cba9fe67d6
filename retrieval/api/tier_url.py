"""URLs that name tiers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from reprise.retrieval.api.redis_url import SCHEMES, parse_redis_url, redact_redis, secrets_of

INDEX_ENDING = ".index"
_EXPECTED = "memory://, sqlite:///path, redis://host:port/0, rediss://... or unix://..."


def check_url(url: str) -> str:
    """Return the scheme of a URL that names a tier; opens nothing.

    Raises:
        ValueError: It names none; says what was expected, without secrets.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in {"memory", "sqlite", *SCHEMES}:
        raise ValueError(f"cache URL must be {_EXPECTED}; got {redact(url)!r}")
    if scheme == "sqlite":
        sqlite_path(url)
    elif scheme != "memory":
        parse_redis_url(url)
        if importlib.util.find_spec("redis") is None:
            raise ValueError(f"{scheme}:// needs redis-py: pip install 'reprise[redis]'")
    return scheme


def tier_behind(url: str) -> str:
    """Return which tier keeps a retrieval process's answers, as tiers are named: sqlite or redis.

    With memory:// that is a file that goes with the process's owner.
    """
    return "sqlite" if url.startswith(("sqlite:", "memory:")) else "redis"


def snapshot_path(url: str, setting: str | None) -> Path | None:
    """Return the file of the vector index: as set, or beside the SQLite file; None where there is
    none.

    Answers that nothing brings back after a restart (memory://) need no index either.
    """
    if url.startswith("memory:"):
        return None
    return Path(setting) if setting is not None else beside_sqlite(url, INDEX_ENDING)


def beside_sqlite(url: str, ending: str) -> Path | None:
    """Return a file beside the SQLite file that a URL names, called like it; None if it names
    none."""
    return Path(f"{sqlite_path(url)}{ending}") if url.startswith("sqlite:") else None


def sqlite_path(url: str) -> Path:
    """Return the file that a sqlite URL names.

    Raises:
        ValueError: It names none.
    """
    # sqlite:///data/a.sqlite and sqlite:////data/a.sqlite are the same file, from the root.
    rest = url.partition("://")[2]
    path = rest.lstrip("/")
    if not path or not rest.startswith("/"):
        raise ValueError(f"sqlite URL must be sqlite:///path from the root, got {url!r}")
    return Path("/" + path)


def redact(url: str) -> str:
    """Return the URL without its passwords."""
    return url if url.startswith(("sqlite:", "memory:")) else redact_redis(url)


def hide_secrets(text: str, url: str) -> str:
    """Return a message without the passwords of the URL that it is about, however they got
    there."""
    text = text.replace(url, redact(url))
    if not url.startswith(("sqlite:", "memory:")):
        for secret in secrets_of(url):
            text = text.replace(secret, "***")
    return text
