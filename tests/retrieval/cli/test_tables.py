"""Tables of answers look as rich's do, and take a small part of the time."""

import time
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table

from reprise.retrieval.cli.tables import print_table

COLUMNS = ("id", "prompt", "answer")
ROWS = [
    ("id1", "Wie kündige ich?", "So."),
    ("id22", "如何取消订单", "[bold]not[/bold] …"),
    ("", "", ""),
]


def as_rich(rows: list[tuple[str, ...]], width: int) -> None:
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    Console(width=width, markup=False).print(table)


def test_it_looks_as_richs(capsys: pytest.CaptureFixture[str]) -> None:
    as_rich(ROWS, 160)
    expected = capsys.readouterr().out
    print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out == expected


def test_a_row_is_one_line_of_what_can_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [("x" * 100, "\x1b[2J\x07", "退" * 100)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[3] == f"│ {'x' * 100} │ �[2J�  │ {'退' * 100} │"


def test_many_rows_take_no_minute(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"id{number}", f"question {number} " * 3, "answer " * 6) for number in range(2500)]

    def took_s(show: Callable[[], None]) -> float:
        began_s = time.thread_time()
        show()
        return time.thread_time() - began_s

    by_rich_s = took_s(lambda: as_rich(rows[:500], 160))
    assert took_s(lambda: print_table(COLUMNS, rows)) < by_rich_s
    assert len(capsys.readouterr().out.splitlines()) == 500 + 2500 + 8
