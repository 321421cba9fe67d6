"""Have our warnings reach the log of vLLM's server."""

import logging


def install() -> None:
    """Give our loggers vLLM's level, unless somebody has given them one.

    A library that vLLM's HTTP server loads (SageMaker's container standards) sets the root logger
    to ERROR, and loggers without a level of their own are silent from then on.
    """
    ours = logging.getLogger("reprise")
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.getLogger("vllm").level or logging.INFO)
