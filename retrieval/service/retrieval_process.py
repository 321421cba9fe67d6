"""The retrieval process: a local retriever behind a Unix socket and a block of shared memory.

Run by `ProcessRetriever` as `python -m reprise.retrieval.service.retrieval_process`, with its
launch configuration as JSON on standard input. It ends when its owner does.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from reprise.retrieval.host.log_lines import formatter
from reprise.retrieval.host.owned_folder import OwnedFolder
from reprise.retrieval.host.pinned_cores import leave_pinned_cores
from reprise.retrieval.service.wire import LaunchConfig

logger = logging.getLogger(__name__)


class _Told(BaseException):
    """The owner wishes this to end."""


def main() -> NoReturn:
    """Serve until the owner is gone, or wishes this to end."""
    multiprocessing.current_process().name = "Retrieval"
    os.umask(0o077)  # all that is written here holds prompts and answers
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = 1
    try:
        status = _serve()
    except _Told:
        status = 0
    except BaseException:
        logger.exception("The retrieval process ends.")
    finally:
        _end(status)


def _leave(*_: object) -> None:
    """End in order, which the owner wishes: answers on their way are written first."""
    _no_more_signals()
    raise _Told


def _no_more_signals() -> None:
    """Let no wish to end interrupt an end that has begun."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end(status: int) -> NoReturn:
    """End at once: all has been written and closed, and to take torch apart takes seconds, in which
    the owner would kill this process."""
    try:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
    finally:
        os._exit(status)


def _serve() -> int:
    """Serve until the owner is gone; return the exit status."""
    launch = msgspec.json.decode(sys.stdin.buffer.read(), type=LaunchConfig)
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(as_json=launch.json_logs))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    leave_pinned_cores(launch.owner_pid)
    folder = OwnedFolder(Path(launch.address).parent)
    folder.share()  # who finds the owner killed must not remove it while it is in use here
    try:
        # Only now: an import that fails is to be one line in the log, once.
        from reprise.retrieval.service.retrieval_server import RetrievalServer

        server = RetrievalServer(launch)
    except (ImportError, OSError, ValueError) as error:
        if launch.is_first:
            logger.warning(
                "Retrieval cannot start, near answers are missing until it can: %s", error
            )
        return 1
    try:
        server.serve(launch.owner_pid)
    finally:
        _no_more_signals()
        server.close()
        with contextlib.suppress(OSError):
            Path(launch.address).unlink()
        if os.getppid() != launch.owner_pid:
            # Nobody is left to start another process with what lies there.
            folder.remove()
    return 0


if __name__ == "__main__":
    main()
