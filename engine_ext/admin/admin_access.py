"""Decides who may use the admin routes."""

import hmac
import ipaddress
from typing import Protocol

from fastapi import HTTPException, Request

from reprise.engine_ext.request.request_control import ADMIN_TOKEN_HEADER

# A proxy names itself in one of these; a page in a browser on this machine sends one of the last
# two.
_FROM_ELSEWHERE = (
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "via",
    "origin",
    "sec-fetch-site",
)


class _Secret(Protocol):
    def get_secret_value(self) -> str: ...


class AdminAccess:
    """Admits callers with the token; if none is set, callers on the machine itself, if the server
    has no API keys.

    Args:
        token: Of the settings.
        has_api_keys: Whether the server distinguishes callers by API keys.
    """

    def __init__(self, token: _Secret | None, *, has_api_keys: bool) -> None:
        self._token = None if token is None else token.get_secret_value().encode()
        self._has_api_keys = has_api_keys

    def check(self, request: Request) -> None:
        """Return if the caller is admitted.

        Raises:
            HTTPException: 401, the token is missing or wrong; 403, the routes are closed.
        """
        if self._token is not None:
            given = request.headers.get(ADMIN_TOKEN_HEADER, "").encode()
            if not hmac.compare_digest(given, self._token):
                raise HTTPException(401, f"expected the admin token in {ADMIN_TOKEN_HEADER}")
        elif self._has_api_keys or not _is_on_this_machine(request):
            raise HTTPException(
                403,
                "the admin routes are closed: set REPRISE_SERVING__ADMIN_TOKEN and send it as "
                f"{ADMIN_TOKEN_HEADER}; without it they are open only to callers on the same "
                "machine, past no proxy, of a server without API keys",
            )


def _is_on_this_machine(request: Request) -> bool:
    if any(name in request.headers for name in _FROM_ELSEWHERE) or request.client is None:
        return False
    # A foreign name that resolves to this machine (DNS rebinding) is not admitted.
    host = request.url.hostname or ""
    return _is_loopback(request.client.host) and (host == "localhost" or _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
