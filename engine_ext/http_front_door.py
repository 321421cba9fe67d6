"""Put the middleware into the OpenAI server's app, without an option on the command line."""

import sys
from functools import wraps
from typing import Any

from vllm.logger import init_logger

logger = init_logger(__name__)

MIDDLEWARE = "reprise.engine_ext.http_exchange.ExchangeMiddleware"
_ENTRY = "vllm.entrypoints.launchers.api_server.entry"


def install() -> bool:
    """Wrap `build_app` where the server that runs in this process will call it. Idempotent.

    Called when the engine client is built, which vLLM's server does before it builds its app.

    Returns:
        False where no such server is loaded, as in a program that uses the engine itself.
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


def _with_middleware(original: Any) -> Any:
    @wraps(original)
    def build_app(args: Any, *others: Any, **kwargs: Any) -> Any:
        # vLLM's own way to name a middleware, as if `--middleware` had been given.
        given = getattr(args, "middleware", None)
        if not isinstance(given, list):
            logger.warning(
                "Reprise: this server takes no --middleware: no x-reprise headers, and namespaces "
                "come from cache_salt alone."
            )
        elif MIDDLEWARE not in given:
            args.middleware = [*given, MIDDLEWARE]
        return original(args, *others, **kwargs)

    build_app._reprise_middleware = True  # type: ignore[attr-defined]
    return build_app
