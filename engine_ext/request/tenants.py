"""Finds whose a request is, and the namespace that follows from that.

| namespace | requests |
| --- | --- |
| as the operator or, where allowed, the client names it | those |
| `key-<hash>` | with an API key that the server checks |
| `key-<hash>.salt-<salt>`, `key-<hash>.hash-<hash>` | with a key and a `cache_salt` |
| `salt-<salt>`, `hash-<hash>` | with a `cache_salt` alone |
| the one without a name | with neither, where no keys are checked: of one tenant |
| none | of an unknown tenant: private |

`hash-` takes the place of a salt that is too long for a name or has characters that a name must not
have. All of one key's namespaces are `key-<hash>` or begin with `key-<hash>.`, and no two different
pairs of key and salt have one namespace.
"""

import hashlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from vllm.logger import init_logger

from reprise.retrieval.api.namespace import check_namespace

logger = init_logger(__name__)

SOLE_TENANT = ""
"""The tenant of all requests where no keys are checked."""

RESERVED_PREFIXES = ("key-", "salt-", "hash-")
"""Of namespaces that stand for keys and salts: no client may name one that begins so."""

_PRIVATE = "\0"


class Isolation(NamedTuple):
    """What keeps one request apart from those of other tenants."""

    namespace: str | None
    """For all of Reprise's caches; None: it shares nothing."""
    cache_salt: str | None
    """For vLLM's prefix cache; None: none."""


def isolation_of(
    *,
    operators: str | None = None,
    clients: str | None = None,
    tenant: str | None,
    cache_salt: object = None,
) -> Isolation:
    """Return the isolation of a request.

    Args:
        operators: the one namespace of a server with a single tenant.
        clients: the namespace that the request names, where the operator honours that.
        tenant: `SOLE_TENANT`, a key's namespace, or None: unknown.
        cache_salt: what vLLM keeps prefix caches apart by. It never joins two tenants.
    """
    if operators is not None:
        return Isolation(operators, _text(cache_salt) or operators or None)
    if cache_salt is not None and not isinstance(cache_salt, str):
        return Isolation(None, None)
    if clients is not None:
        return Isolation(clients, _named_salt(clients, cache_salt))
    if tenant is None and not cache_salt:
        return Isolation(None, None)
    namespace = _with_salt(tenant or "", cache_salt)
    # Without keys the salt isolates by itself, and routers may have computed with it.
    salt = cache_salt if tenant == SOLE_TENANT else namespace
    return Isolation(namespace, salt or None)


def key_namespace(api_key: str) -> str:
    """Return the namespace of an API key's requests; with a salt, `.` and more follow."""
    return "key-" + hashlib.sha256(api_key.encode()).hexdigest()[:24]


def private_namespace() -> str:
    """Return a namespace for one request only: no client can name it, and it is never reused."""
    return _PRIVATE + secrets.token_hex(16)


def namespace_of_request(declared: str | None, hinted: str | None) -> str:
    """Return a request's namespace in the worker; one of its own where nobody knows whose it is.

    Args:
        declared: the single tenant that the operator has declared, if so.
        hinted: what came with the request.
    """
    if declared is not None:
        return declared
    return private_namespace() if hinted is None else hinted


def is_private(namespace: str) -> bool:
    """Return whether the namespace belongs to one request only."""
    return namespace.startswith(_PRIVATE)


class ServerTenants:
    """Distinguishes tenants by the keys that an HTTP server checks.

    Args:
        api_keys: those that the server checks. Without any, a bearer token says nothing: clients
            send `EMPTY`, or a token that a gateway renews every hour.
        others_check: something else in this server may distinguish clients, by means unknown
            here. Without keys, the tenant of a request is unknown then.
    """

    def __init__(self, api_keys: Sequence[str] = (), *, others_check: bool = False) -> None:
        self._namespaces = {_digest(key): key_namespace(key) for key in api_keys}
        self._without_keys = None if others_check or api_keys else SOLE_TENANT

    def tenant_of(self, authorization: str | None) -> str | None:
        """Return the tenant that sends this `Authorization` header; None: unknown.

        A key that the server does not know has no tenant: vLLM refuses it, but not on every path.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and (found := self._namespaces.get(_digest(token))):
            return found
        return self._without_keys


_warned: set[str] = set()


def warn_of_private_requests(reason: str) -> None:
    """Log, once for each reason, that requests share nothing, and what to do about it."""
    if reason not in _warned:
        _warned.add(reason)
        logger.warning(
            "Reprise: %s. The tenant of such a request without cache_salt is unknown: it shares no "
            "cached answers, and its drafts come from its own context only. Set REPRISE_NAMESPACE "
            "if all requests belong to one tenant, or send a cache_salt for each tenant.",
            reason,
        )


def _with_salt(prefix: str, salt: str | None) -> str:
    if not salt:
        return prefix
    dotted = prefix + "." if prefix else ""
    try:
        return check_namespace(f"{dotted}salt-{salt}")
    except ValueError:  # too long, or from elsewhere than the HTTP server, which checks its own
        return f"{dotted}hash-{_hashed(salt)}"


def _named_salt(namespace: str, salt: str | None) -> str | None:
    # A name may end as a name and a salt would: keep the two apart.
    return "hash-" + _hashed(f"{namespace}\0{salt}") if salt else namespace or None


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:48]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
