"""Progress of what runs for minutes, as lines with the time."""

from __future__ import annotations

import os
import time
from pathlib import Path

from reprise.eval.report.command_line import InputError


class ProgressLog:
    """Writes lines to standard error, and to a file if there is one.

    Standard error is that of the moment when this is made: a command may redirect it later, for
    the processes that it starts.

    Args:
        path: lines are appended to this file.

    Raises:
        InputError: the file cannot be written to.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._append("")
        self._stderr = os.dup(2)

    def __call__(self, line: str) -> None:
        """Write a line."""
        stamped = f"{time.strftime('%H:%M:%S')} {line}\n"
        os.write(self._stderr, stamped.encode())
        self._append(stamped)

    def __del__(self) -> None:
        if hasattr(self, "_stderr"):
            os.close(self._stderr)

    def _append(self, text: str) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InputError(f"--log: {self._path}: {error.strerror}") from error
