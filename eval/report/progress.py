"""Progress bars for everything that takes longer than a glance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Name and number of ticks to a context manager of the function that ticks."""


@contextmanager
def progress_stages(*, quiet: bool) -> Iterator[Stage]:
    """Progress on standard error; each stage's bar is there only while the stage runs."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Elsewhere than on a terminal a bar would leave empty lines behind.
        disable=quiet or not console.is_terminal,
    )

    @contextmanager
    def stage(name: str, total: int) -> Iterator[Callable[[], None]]:
        task = progress.add_task(name, total=total)
        yield lambda: progress.advance(task)
        progress.remove_task(task)

    with progress:
        yield stage
