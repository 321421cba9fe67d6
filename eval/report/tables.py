"""Where tables are printed, and figures in them."""

from decimal import Decimal

from rich.console import Console

_FILE_WIDTH = 150


def table_console() -> Console:
    """Return a console on standard output: as wide as the terminal or, in a file or a pipe, wide
    enough for all columns."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def four_digits(value: float) -> str:
    """Return a value with four significant digits, and no exponent."""
    return format(Decimal(f"{value:.4g}"), "f")
