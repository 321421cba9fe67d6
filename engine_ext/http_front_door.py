"""Put the middleware into the OpenAI server's app, without an option on the command line."""

import ssl
import sys
from functools import wraps
from typing import Any

from vllm import envs
from vllm.logger import init_logger

from reprise.engine_ext.http_exchange import ExchangeMiddleware
from reprise.engine_ext.tenants import ServerTenants

logger = init_logger(__name__)

_ENTRY = "vllm.entrypoints.launchers.api_server.entry"


def install() -> bool:
    """Wrap `build_app` where the server that runs in this process will call it. Idempotent.

    Called when the engine client is built, which vLLM's server does before it builds its app.

    Returns:
        False where no such server is loaded, as in a program that uses the engine itself, or with
        gRPC. Requests come without an exchange then, so without a tenant.
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


def server_tenants(args: Any) -> ServerTenants:
    """The tenants of a server of vLLM's that was started with these arguments."""
    given = getattr(args, "api_key", None) or [envs.VLLM_API_KEY]
    api_keys = [key for key in ([given] if isinstance(given, str) else given) if key]
    others_check = not hasattr(args, "api_key") or bool(getattr(args, "middleware", None))
    others_check = others_check or getattr(args, "ssl_cert_reqs", 0) != ssl.CERT_NONE
    return ServerTenants(api_keys, others_check=others_check)


def _with_middleware(original: Any) -> Any:
    @wraps(original)
    def build_app(args: Any, *others: Any, **kwargs: Any) -> Any:
        app = original(args, *others, **kwargs)
        try:
            app.add_middleware(ExchangeMiddleware, tenants=server_tenants(args))
        except Exception as error:
            logger.warning(
                "Reprise: this server takes no middleware (%s): no x-reprise headers, and "
                "requests without cache_salt share no cached answers.",
                error,
            )
        return app

    build_app._reprise_middleware = True  # type: ignore[attr-defined]
    return build_app
