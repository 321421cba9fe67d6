"""Progress of everything that takes longer than a glance: a bar on a terminal, else lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from reprise.eval.report.progress_log import ProgressLog

Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Name and number of ticks to a context manager of the function that ticks."""
LINE_EVERY_S = 10.0


@contextmanager
def progress_stages(*, quiet: bool, every_s: float = LINE_EVERY_S) -> Iterator[Stage]:
    """Show progress on standard error: a bar while a stage runs, or a line every `every_s`.

    Lines are for files and pipes, in which a bar would leave nothing to read.
    """
    console = Console(stderr=True)
    if quiet:
        yield _silent_stage
    elif console.is_terminal:
        with _bars(console) as stage:
            yield stage
    else:
        log = ProgressLog(None)
        yield lambda name, total: _stage_in_lines(log, name, total, every_s)


@contextmanager
def _silent_stage(*_: object) -> Iterator[Callable[[], None]]:
    yield lambda: None


@contextmanager
def _bars(console: Console) -> Iterator[Stage]:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )

    @contextmanager
    def stage(name: str, total: int) -> Iterator[Callable[[], None]]:
        task = progress.add_task(name, total=total)
        yield lambda: progress.advance(task)
        progress.remove_task(task)

    with progress:
        yield stage


@contextmanager
def _stage_in_lines(
    log: ProgressLog, name: str, total: int, every_s: float
) -> Iterator[Callable[[], None]]:
    """Write a line at the beginning, and from a thread while it lasts."""
    done, has_ended, began_s = 0, threading.Event(), time.monotonic()

    def tick() -> None:
        nonlocal done
        done += 1

    def write_lines() -> None:
        while not has_ended.wait(every_s):
            log(f"{name}: {done} of {total} after {time.monotonic() - began_s:.0f} s")

    log(f"{name}: begins")
    thread = threading.Thread(target=write_lines, name="reprise-progress", daemon=True)
    thread.start()
    try:
        yield tick
    finally:
        has_ended.set()
        thread.join()
