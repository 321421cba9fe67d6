"""Where tables are printed."""

from rich.console import Console

_FILE_WIDTH = 150


def table_console() -> Console:
    """Return a console on standard output: as wide as the terminal or, in a file or a pipe, wide
    enough for all columns."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)
