"""Files of measured rows: each row says when, from which commit, on what and by which command."""

from __future__ import annotations

import csv
import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reprise.eval.report.command_line import InputError
from reprise.eval.report.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "eval" / "results"
ORIGIN = ("time", "commit", "machine", "load", "command")
"""Columns that every file begins with. `load`: programs that wanted a core in the last minute."""


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]], *, fields: Sequence[str]) -> None:
    """Add rows to a file, which is made if it is not there.

    Args:
        rows: by field; fields that are left out are empty. `machine` may name another device than
            this processor.
        fields: columns beside ORIGIN, the same for all rows of a file.

    Raises:
        InputError: the file has other columns.
        ValueError: a row has a field that is not in `fields`.
    """
    header = [*ORIGIN, *fields]
    check_rows_fit(path, fields=fields)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _holds_rows(path):
        path.write_text(",".join(header) + "\n")
    origin = origin_of_row()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
        writer.writerows({**origin, **row} for row in rows)


def check_rows_fit(path: Path, *, fields: Sequence[str]) -> None:
    """Check that rows may be added to a file: before they are measured, which takes its time. They
    will name the commit of now, whatever is checked out or changed meanwhile.

    Raises:
        InputError: the file has other columns, or cannot be written to.
    """
    header = [*ORIGIN, *fields]
    if _holds_rows(path) and (found := read_header(path)) != header:
        raise InputError(f"{path}: expected columns {header}, found {found}")
    if path.exists() and (path.is_dir() or not os.access(path, os.W_OK)):
        raise InputError(f"{path}: cannot be written to")
    commit()


def _holds_rows(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def read_header(path: Path) -> list[str]:
    """Return a file's columns."""
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return all rows of a file, oldest first."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def origin_of_row() -> dict[str, str]:
    """Return what ORIGIN says of a row that is measured now, by this process."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": describe_machine(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "command": command(sys.argv),
    }


@functools.cache
def commit() -> str:
    """Return the commit of this checkout; with a plus sign if files of it have been changed. Asked
    for again it is that of the first time: what runs in this process is no other."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    # Rows of the same run are being added to the results.
    changed = [*git, "status", "--porcelain", "-uno", "--", ".", ":!eval/results"]
    changes = subprocess.run(changed, capture_output=True, text=True)
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def command(arguments: Sequence[str]) -> str:
    """Return how a reader of the results would give the command, from the root of the checkout; of
    files elsewhere, the names."""
    script = Path(arguments[0]).resolve()
    given = [Path(one).name if Path(one).is_absolute() else one for one in arguments[1:]]
    if script.is_relative_to(ROOT):
        return shlex.join(["python", str(script.relative_to(ROOT)), *given])
    return shlex.join([script.name, *given])
