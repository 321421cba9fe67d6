"""What a Redis URL says, checked when it is configured, and what of it may be shown."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = ("redis", "rediss", "unix")
_HIDDEN = "***"
_ENCODED = "user name and password percent-encoded (@ as %40, / as %2F, # as %23, ? as %3F)"
_BOOLEANS = ("0", "1", "true", "false", "yes", "no")
# Options of redis-py that make sense for a tier, and what their values look like.
_NUMBERS = (
    *("db", "health_check_interval", "max_connections", "protocol", "ssl_min_version"),
    *("socket_connect_timeout", "socket_timeout"),
)
_SWITCHES = ("socket_keepalive", "ssl_check_hostname")
_WORDS = (
    *("client_name", "password", "username", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile"),
    *("ssl_cert_reqs", "ssl_ciphers", "ssl_keyfile", "ssl_password"),
)
# What only we understand.
_OURS = ("cluster", "sentinel", "sentinels")
_OPTIONS = (*_OURS, *sorted((*_NUMBERS, *_SWITCHES, *_WORDS)))
_SENTINEL_PORT = 26_379
# Shorter ones would be found in every other word of a message.
_MIN_SECRET_CHARACTERS = 3


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL that redis-py reads as it is meant."""

    url: str
    """For redis-py: without what only we understand."""
    is_cluster: bool
    service: str | None = None
    """What Sentinel calls the master to use; None: the URL's own host is the Redis."""
    sentinels: tuple[tuple[str, int], ...] = ()
    """Host and port of each Sentinel to ask: the URL's own first."""


def parse_redis_url(url: str) -> RedisUrl:
    """Take a redis://, rediss:// or unix:// URL apart.

    Raises:
        ValueError: One line that names what is wrong and what was expected, without secrets.
    """
    try:
        base, pairs = _split(url)
    except ValueError:
        raise ValueError(
            f"cache URL must be redis://[user:password@]host:port/0?option=value, with "
            f"{_ENCODED}; got {redact_redis(url)!r}"
        ) from None
    options = _checked(pairs, scheme=url.partition("://")[0])
    is_cluster = options.pop("cluster", "0") == "1"
    if is_cluster:
        if base.startswith("unix:"):
            raise ValueError("cache URL with cluster=1 must be redis:// or rediss://, got unix://")
        database = options.pop("db", None) or urlsplit(base).path.strip("/") or "0"
        if int(database) != 0:
            raise ValueError(f"cache URL: a cluster has database 0 only, got {database}")
        base = base.removesuffix("/").removesuffix(urlsplit(base).path)
    service, others = options.pop("sentinel", None), options.pop("sentinels", None)
    sentinels = _sentinels(base, service, others, is_cluster=is_cluster)
    kept = [text for name, text in pairs if name in options]
    read = base + ("?" + "&".join(kept) if kept else "")
    return RedisUrl(read, is_cluster, service, sentinels)


def _sentinels(
    base: str, service: str | None, others: str | None, *, is_cluster: bool
) -> tuple[tuple[str, int], ...]:
    """Return where to ask for a service's master.

    Raises:
        ValueError: Options that do not go together.
    """
    if service is None:
        if others is not None:
            raise ValueError("cache URL: option 'sentinels' needs sentinel=NAME of the master")
        return ()
    if is_cluster or base.startswith("unix:"):
        wrong = "cluster=1" if is_cluster else "unix://"
        raise ValueError(f"cache URL: option 'sentinel' does not go with {wrong}")
    parts = urlsplit(base)
    own = (parts.hostname or "localhost", parts.port or _SENTINEL_PORT)
    return (own, *map(_host_and_port, others.split(",") if others else ()))


def _host_and_port(text: str) -> tuple[str, int]:
    """Take `host:port` or `host` apart.

    Raises:
        ValueError: It is neither.
    """
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path or "@" in text:
        raise ValueError
    return parts.hostname, parts.port or _SENTINEL_PORT


def redact_redis(url: str) -> str:
    """Return the URL without its passwords; of one that cannot be taken apart only the scheme."""
    scheme, separator, rest = url.partition("://")
    if not separator:  # a slash too few, or no scheme: nothing that could be taken apart
        return _HIDDEN if _may_hold_a_secret(url) else url
    try:
        base, pairs = _split(url)
    except ValueError:
        return f"{scheme}{separator}{_HIDDEN}" if _may_hold_a_secret(rest) else url
    rest = base.partition("://")[2]
    user_info, at, host = rest.rpartition("@")
    if at:
        user, colon, _ = user_info.partition(":")
        user_info = f"{user}:{_HIDDEN}" if colon else _HIDDEN
    # A name that is none of ours may be a password's, behind an `&`.
    shown = [
        f"{name}={_HIDDEN}" if "password" in name else text if name in _OPTIONS else _HIDDEN
        for name, text in pairs
    ]
    return f"{scheme}{separator}{user_info}{at}{host}" + ("?" + "&".join(shown) if shown else "")


def _may_hold_a_secret(text: str) -> bool:
    return "@" in text or "pass" in text.lower()


def secrets_of(url: str) -> list[str]:
    """Return what must not be shown of a URL, as written and as meant; the longest first."""
    try:
        base, pairs = _split(url)
    except ValueError:
        return [url]
    user_info, at, _ = base.partition("://")[2].rpartition("@")
    user, colon, password = user_info.partition(":")
    written = [password if colon else user] if at else []
    written += [text.partition("=")[2] for name, text in pairs if "password" in name]
    meant = [unquote(text) for text in written] + [unquote(t.replace("+", " ")) for t in written]
    found = {text for text in (*written, *meant) if len(text) >= _MIN_SECRET_CHARACTERS}
    return sorted(found, key=len, reverse=True)


def _split(url: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the URL without its options, and each option's name beside `name=value` as written.

    Raises:
        ValueError: It is not clear what belongs where, as with a password that holds an `@`.
    """
    parts = urlsplit(url)
    is_socket = parts.scheme == "unix"
    _ = parts.port  # raises where it is no number
    path = parts.path if is_socket else parts.path.strip("/")
    if (
        "#" in url
        or parts.netloc.count("@") > 1
        or (parts.netloc and not parts.hostname and not is_socket)
    ):
        raise ValueError("ambiguous")
    if "@" in path if is_socket else path and not (path.isascii() and path.isdecimal()):
        raise ValueError("ambiguous")
    texts = parts.query.split("&") if parts.query else []
    if not all("=" in text for text in texts):
        raise ValueError("ambiguous")
    return url.partition("?")[0], [(text.partition("=")[0], text) for text in texts]


def _checked(pairs: list[tuple[str, str]], *, scheme: str) -> dict[str, str]:
    """Return the options' values.

    Raises:
        ValueError: An option that is unknown, given twice or of no use, or a wrong value.
    """
    options: dict[str, str] = {}
    for name, text in pairs:
        if name not in _OPTIONS:
            # What follows an `&` in a password is no option's name.
            shown = "after a password (& is written %26)" if "password" in options else repr(name)
            raise ValueError(
                f"cache URL: unknown option {shown}; expected one of {', '.join(_OPTIONS)}"
            )
        if name in options:
            raise ValueError(f"cache URL: option {name!r} is given twice")
        if name.startswith("ssl_") and scheme != "rediss":
            raise ValueError(f"cache URL: option {name!r} needs rediss://, got {scheme}://")
        value = parse_qsl(text, keep_blank_values=True)[0][1]
        expected = _expected(name, value)
        if expected:
            shown = _HIDDEN if "password" in name else repr(value)
            raise ValueError(f"cache URL: option {name!r} must be {expected}, got {shown}")
        options[name] = value
    return options


def _expected(name: str, value: str) -> str:
    """Return what an option's value must be; empty if it is."""
    if name == "cluster":
        return "" if value in ("0", "1") else "0 or 1"
    if name == "sentinels":
        return "" if all(map(_is_host_and_port, value.split(","))) else "host:port,host:port"
    if name == "ssl_cert_reqs":
        return "" if value in ("none", "optional", "required") else "none, optional or required"
    if name in _NUMBERS:
        fraction = name.endswith("timeout")
        digits = value.replace(".", "", 1) if fraction else value
        is_number = digits.isascii() and digits.isdecimal()
        return "" if is_number else "a number of seconds" if fraction else "a whole number"
    if name in _SWITCHES:
        return "" if value.lower() in _BOOLEANS else "one of " + ", ".join(_BOOLEANS)
    return "" if value else "something"


def _is_host_and_port(text: str) -> bool:
    try:
        _host_and_port(text)
    except ValueError:
        return False
    return True
