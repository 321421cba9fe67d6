"""Watches over the start of vLLM's server: bad settings end it at once, and so does SIGTERM."""

import logging
import multiprocessing
import os
import sys

from reprise.engine_ext.checks.start_checks import (
    check_start,
    model_of,
    refusal_of,
    warnings_of,
)
from reprise.engine_ext.core.config import CHECKED_VARIABLE

logger = logging.getLogger(__name__)
_BAD_INPUT = 2
_checked_pids: set[int] = set()


def check_once() -> None:
    """Check the command line and the settings of this process, if it is a server's first one.

    Raises:
        SystemExit: something will not work; one line on standard error says what.
    """
    pid = os.getpid()
    is_child = multiprocessing.parent_process() is not None
    if is_child or pid in _checked_pids or os.environ.get(CHECKED_VARIABLE) == str(pid):
        return
    _checked_pids.add(pid)
    arguments = sys.argv[1:]
    # vLLM has bound the port by now, or says itself that it is taken.
    findings = check_start(model_of(arguments), arguments, with_port=False)
    if (refusal := refusal_of(findings)) is not None:
        print(f"reprise: {refusal}", file=sys.stderr, flush=True)
        raise SystemExit(_BAD_INPUT)
    for warning in warnings_of(findings):
        logger.warning("Reprise: %s", warning)
