"""Put the middleware into the OpenAI server's app, without an option on the command line."""

import ssl
import sys
from functools import wraps
from typing import Any

from vllm import envs
from vllm.logger import init_logger

from reprise.engine_ext.request.http_context import AsgiApp, HttpContextMiddleware, Scope
from reprise.engine_ext.request.tenants import ServerTenants

logger = init_logger(__name__)

MIDDLEWARE = "reprise.engine_ext.compat.http_front_door.ServerMiddleware"
_ENTRY = "vllm.entrypoints.launchers.api_server.entry"


def install() -> bool:
    """Wrap `build_app` where the server that runs in this process will call it. Idempotent.

    Called when the engine client is built, which vLLM's server does before it builds its app.

    Returns:
        False where no such server is loaded, as in a program that uses the engine itself, or with
        gRPC. Requests come without an HTTP context then, so without a tenant.
    """
    entries = [sys.modules.get(_ENTRY), sys.modules.get("__main__")]
    found = False
    for entry in entries:
        original = getattr(entry, "build_app", None)
        if original is None or getattr(original, "__module__", "").split(".")[0] != "vllm":
            continue
        found = True
        if not getattr(original, "_reprise_middleware", False):
            entry.build_app = _with_middleware(original)  # type: ignore[union-attr]
    return found


class ServerMiddleware(HttpContextMiddleware):
    """The middleware in vLLM's server, whose arguments tell which keys it checks."""

    def __init__(self, app: AsgiApp) -> None:
        super().__init__(app)
        self._are_known = False

    def _tenants_of(self, scope: Scope) -> ServerTenants:
        if not self._are_known:
            args = getattr(scope["app"].state, "args", None)
            self._tenants, self._are_known = server_tenants(args), True
        return self._tenants


def server_tenants(args: Any) -> ServerTenants:
    """The tenants of a server of vLLM's that was started with these arguments."""
    given = getattr(args, "api_key", None) or [envs.VLLM_API_KEY]
    api_keys = [key for key in ([given] if isinstance(given, str) else given) if key]
    theirs = [each for each in getattr(args, "middleware", None) or () if each != MIDDLEWARE]
    has_certificates = getattr(args, "ssl_cert_reqs", ssl.CERT_NONE) != ssl.CERT_NONE
    is_unknown = not hasattr(args, "api_key")
    return ServerTenants(api_keys, others_check=bool(theirs) or has_certificates or is_unknown)


def _with_middleware(original: Any) -> Any:
    @wraps(original)
    def build_app(args: Any, *others: Any, **kwargs: Any) -> Any:
        # vLLM's own way to name a middleware, as if `--middleware` had been given. The app that
        # comes back takes none any more.
        given = getattr(args, "middleware", None)
        if not isinstance(given, list):
            logger.warning(
                "Reprise: this server takes no --middleware: no x-reprise headers, and requests "
                "without cache_salt share no cached answers."
            )
        elif MIDDLEWARE not in given:
            args.middleware = [*given, MIDDLEWARE]
        return original(args, *others, **kwargs)

    build_app._reprise_middleware = True  # type: ignore[attr-defined]
    return build_app
