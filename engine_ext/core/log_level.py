"""Have what we log reach the log of vLLM's server, as vLLM's own lines do."""

import logging


class _AsVllm(logging.Handler):
    """Hands our records to vLLM's handlers where the root logger has none, as vLLM leaves it: by
    itself Python would print warnings only."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return
        handlers = logging.getLogger("vllm").handlers
        if not handlers and logging.lastResort is not None:
            handlers = [logging.lastResort]
        for handler in handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


def install() -> None:
    """Give our loggers vLLM's level and handlers, unless somebody has given them any.

    A library that vLLM's HTTP server loads (SageMaker's container standards) sets the root logger
    to ERROR, and loggers without a level of their own are silent from then on.
    """
    ours = logging.getLogger("reprise")
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.getLogger("vllm").level or logging.INFO)
    if not ours.handlers:
        ours.addHandler(_AsVllm())
