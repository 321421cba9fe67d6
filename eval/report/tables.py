"""Where tables are printed, and figures in them."""

from decimal import Decimal

from rich.console import Console
from rich.table import Table

_FILE_WIDTH = 150


def table_console() -> Console:
    """Return a console on standard output: as wide as the terminal or, in a file or a pipe, wide
    enough for all columns."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def table_of(*headings: str, title: str | None = None, num_words: int = 1) -> Table:
    """Return a table without rows, whose first `num_words` columns have words, the others
    figures."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < num_words else "right")
    return table


def four_digits(value: float) -> str:
    """Return a value with four significant digits, and no exponent."""
    return format(Decimal(f"{value:.4g}"), "f")
