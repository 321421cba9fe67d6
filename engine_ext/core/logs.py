"""Have our log lines stand among vLLM's, and look like them."""

import contextlib
import logging
import sys

from reprise.engine_ext.core.config import load_config
from reprise.retrieval.host.log_lines import JsonLines


class _VllmHandlers(logging.Handler):
    """Passes records on to whatever handlers vLLM's logger has then: a program's engine configures
    them after the plugin has been loaded. Where there are none, to those of the root."""

    def emit(self, record: logging.LogRecord) -> None:
        handlers = logging.getLogger("vllm").handlers
        if not handlers:
            logging.getLogger().callHandlers(record)
        for handler in handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


def install() -> None:
    """Give our loggers vLLM's level and handlers, unless somebody has given them their own.

    Otherwise lines have neither time nor level nor process, and information goes nowhere. A library
    that vLLM's HTTP server loads (SageMaker's container standards) sets the root logger to ERROR
    besides, and loggers without a level of their own are silent from then on.
    """
    ours, theirs = logging.getLogger("reprise"), logging.getLogger("vllm")
    if ours.level == logging.NOTSET:
        ours.setLevel(theirs.level or logging.INFO)
    if ours.handlers:
        return
    ours.addHandler(_json_handler() if wants_json() else _VllmHandlers())
    ours.propagate = False


def wants_json() -> bool:
    """Return whether our log lines are to be JSON."""
    with contextlib.suppress(ValueError):  # who builds an engine is told
        return load_config().log_format == "json"
    return False


def _json_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    return handler
