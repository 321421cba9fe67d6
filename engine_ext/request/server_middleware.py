"""Put the middleware into the OpenAI server's app, without an option on the command line."""

import ssl
from collections.abc import Callable
from typing import Any

from vllm import envs
from vllm.logger import init_logger

from reprise.engine_ext.request.http_context import AsgiApp, HttpContextMiddleware, Scope
from reprise.engine_ext.request.tenants import ServerTenants

logger = init_logger(__name__)

MIDDLEWARE = "reprise.engine_ext.request.server_middleware.ServerMiddleware"


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


def build_app(original: Callable[..., Any], args: Any, *others: Any, **kwargs: Any) -> Any:
    """Build the server's app with the middleware: the hook of `Feature.HTTP`.

    It is named as `--middleware` would name it. The app that comes back takes none any more.
    """
    given = getattr(args, "middleware", None)
    if not isinstance(given, list):
        logger.warning(
            "Reprise: this server takes no --middleware: no x-reprise headers, and requests "
            "without cache_salt share no cached answers."
        )
    elif MIDDLEWARE not in given:
        args.middleware = [*given, MIDDLEWARE]
    return original(args, *others, **kwargs)
