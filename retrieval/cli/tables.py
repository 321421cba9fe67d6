"""Tables and text for a terminal, which shows what answers hold and never obeys it.

Of any number of rows: rich's own tables take a minute for 100,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console

_PAGE = 1000


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print rows under the names of their columns, one line for each, however long it is.

    Args:
        columns: Names.
        rows: As many texts in each as there are columns.
    """
    lines = box.HEAVY_HEAD.substitute(Console().options)
    texts = [[_printable(text) for text in row] for row in (columns, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*texts, strict=True)]
    padded = [width + 2 for width in widths]
    head = _line(texts[0], widths, lines.head_left, lines.head_vertical, lines.head_right)
    printed = [lines.get_top(padded), head, lines.get_row(padded, "head")]
    for row in texts[1:]:
        printed.append(_line(row, widths, lines.mid_left, lines.mid_vertical, lines.mid_right))
        if len(printed) >= _PAGE:
            typer.echo("\n".join(printed))
            printed = []
    typer.echo("\n".join([*printed, lines.get_bottom(padded)]))


def _line(texts: Sequence[str], widths: Sequence[int], left: str, between: str, right: str) -> str:
    cells = (
        f" {text}{' ' * (width - cell_len(text))} "
        for text, width in zip(texts, widths, strict=True)
    )
    return f"{left}{between.join(cells)}{right}"


def _printable(text: str) -> str:
    """Return a text without what moves the cursor of a terminal, or worse."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "�" for each in text)


def plain(text: str) -> str:
    """Return JSON without what is no character to show: escaped, as JSON has it."""
    return text.translate({code: f"\\u{code:04x}" for code in range(127, 160)})
