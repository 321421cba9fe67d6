"""Watches over the start of vLLM's server: bad settings end it at once, and so does SIGTERM."""

import multiprocessing
import os
import signal
import sys
import threading
from types import FrameType

from vllm.logger import init_logger

from reprise.engine_ext.checks.start_checks import (
    check_start,
    model_of,
    refusal_of,
    warnings_of,
)
from reprise.engine_ext.core.config import CHECKED_VARIABLE
from reprise.retrieval.host.process_end import end_in_time

# vLLM's handler from its first lines until uvicorn runs, whose own takes its place.
_VLLMS_HANDLER = "run_server.<locals>._interrupt_init"
logger = init_logger(__name__)
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


def end_soon_on_sigterm() -> None:
    """Have SIGTERM end the start of vLLM's server within seconds, and all that it has started.

    vLLM interrupts what it does then, and waits for an engine core that takes no signal before its
    model is loaded. To be called by the server while it builds its engine, and of no effect in any
    other process; once it serves, how it ends is vLLM's own affair.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    vllms = signal.getsignal(signal.SIGTERM)
    if not callable(vllms) or getattr(vllms, "__qualname__", "") != _VLLMS_HANDLER:
        return

    def end(signum: int, frame: FrameType | None) -> None:
        end_in_time()
        vllms(signum, frame)

    signal.signal(signal.SIGTERM, end)
