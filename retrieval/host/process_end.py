"""How a process ends within seconds when it is told to, with all that it has started.

A process that starts vLLM may be told to end while an engine core loads a model and takes no
signal, or while several of them stand still. Whoever waits for one after another, each with a limit
of its own, is gone after a minute; whoever does not wait leaves engines behind. So all are told at
once, all have the same few seconds, and what is still there then is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import psutil

ENDED_BY_SIGTERM = 128 + signal.SIGTERM
"""Exit status of a command that SIGTERM ended."""
LISTENS_WITHIN_S = 1.5
"""How long a process that was told to end has until it is killed."""
_ORDERLY_WITHIN_S = 2.5
_GIVES_WAY_WITHIN_S = 0.7
_CLEARS_WITHIN_S = 0.3
_LOOK_EVERY_S = 0.05
_TRACKER = "multiprocessing.resource_tracker"
_has_begun = threading.Event()

Find = Callable[[], list[psutil.Process]]


def end_groups(leaders: Iterable[int], *, within_s: float = LISTENS_WITHIN_S) -> None:
    """End process groups side by side: tell all of their processes to end, those that stand still
    too, and kill what is left after a while.

    Args:
        leaders: Process ids of their first processes, which may be gone.
        within_s: How long all of them have together.
    """
    groups = frozenset(leaders)
    for leader in groups:
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader, number)
    _kill_what_is_left(lambda: _members(groups), within_s=within_s)


def end_in_time() -> None:
    """Have this process end within 4 s, and before it all that it has started, whatever it does
    meanwhile; to be called when it has been told to end."""
    if not _has_begun.is_set():
        _has_begun.set()
        find = _all_started()
        threading.Thread(target=_end_all, args=(find,), name="reprise-end", daemon=True).start()


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process by way of its context managers, within 4 s.

    What has been started and is still there afterwards is killed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers are the main thread's
        return
    find: Find | None = None

    def leave(*_: object) -> None:
        nonlocal find
        if find is None:  # a second signal must not interrupt what the first has begun
            find = _all_started()
            end_in_time()
            sys.exit(ENDED_BY_SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except Exception:
        if find is None:
            raise
        # What is interrupted, such as a compiler, may fail in a way of its own.
        raise SystemExit(ENDED_BY_SIGTERM) from None
    finally:
        if find is not None:
            _kill_what_is_left(find, within_s=0.0)
        signal.signal(signal.SIGTERM, before)


def _end_all(find: Find) -> None:
    try:
        time.sleep(_ORDERLY_WITHIN_S)
        for each in find():
            with contextlib.suppress(psutil.Error):
                each.terminate()
                each.resume()  # what stands still hears nothing
        _kill_what_is_left(find, within_s=_GIVES_WAY_WITHIN_S)
        time.sleep(_CLEARS_WITHIN_S)  # whoever has waited for them removes its files now
    finally:
        os._exit(ENDED_BY_SIGTERM)


def _all_started() -> Find:
    """Return what finds the processes that this one has started, those whose parents have ended
    meanwhile too."""
    this, own_group = psutil.Process(), os.getpgid(0)
    known: set[psutil.Process] = set()
    groups: set[int] = set()

    def find() -> list[psutil.Process]:
        known.update(this.children(recursive=True))
        for each in filter(psutil.Process.is_running, known):
            with contextlib.suppress(ProcessLookupError):
                groups.add(os.getpgid(each.pid))
        # Its own group is also that of who has started it.
        return [*filter(_is_alive, known.union(_members(groups - {own_group})))]

    find()
    return find


def _members(groups: Iterable[int]) -> list[psutil.Process]:
    """Return the processes of these groups that have not ended."""
    wanted = frozenset(groups)
    found = []
    for pid in psutil.pids() if wanted else ():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(pid) in wanted and _is_alive(process := psutil.Process(pid)):
                found.append(process)
    return found


def _is_alive(process: psutil.Process) -> bool:
    """Return whether it runs; one that has ended stays in the list until it is waited for."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _kill_what_is_left(find: Find, *, within_s: float) -> None:
    """Kill what is still there after a while. The trackers of shared memory come last: they remove
    what the others had there, once these are gone."""
    for each in _wait(find, within_s):
        if not _is_tracker(each):
            _kill(each)
    for each in _wait(find, _CLEARS_WITHIN_S):
        _kill(each)


def _wait(find: Find, within_s: float) -> list[psutil.Process]:
    """Return what is left after a while, as soon as nothing is."""
    deadline_s = time.monotonic() + within_s
    while (left := find()) and time.monotonic() < deadline_s:
        time.sleep(_LOOK_EVERY_S)
    if left:  # the machine may have stood still since they were looked for
        time.sleep(_LOOK_EVERY_S)
        left = find()
    return left


def _is_tracker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(_TRACKER in word for word in process.cmdline())
    return False


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()
