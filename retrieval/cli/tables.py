"""Tables for a terminal, which shows what answers hold and never obeys it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

# Those of Unicode's first two blocks: some terminals take the second kind for an escape as well.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, width: int = 160) -> None:
    """Print rows of text."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(cell.translate(_CONTROLS) for cell in row))
    Console(width=width, soft_wrap=True, markup=False, emoji=False).print(table)


def plain(text: str) -> str:
    """Return JSON without what is no character to show: escaped, as JSON has it."""
    return text.translate({code: f"\\u{code:04x}" for code in range(127, 160)})
