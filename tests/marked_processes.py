"""Processes that carry a mark in their environment: all that a command starts, whoever its parent
is by then."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

_NAME = "MARK_OF_TEST"


class Mark:
    """A mark, and the processes that carry it."""

    def __init__(self) -> None:
        self._value = uuid.uuid4().hex

    def environment(self, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return an environment with the mark."""
        return {**environment, _NAME: self._value}

    def alive(self) -> list[str]:
        """Return the command lines of processes with this mark that have not ended."""
        wanted = f"{_NAME}={self._value}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    process = psutil.Process(int(folder.name))
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
            except (OSError, psutil.Error):
                continue
        return found

    def left_after(self, seconds: float) -> list[str]:
        """Return what is left after a while, as soon as nothing is."""
        deadline_s = time.monotonic() + seconds
        while (left := self.alive()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return left and self.alive()  # the machine may have stood still since

    def kill(self) -> None:
        """End what is left, so that a test that fails leaves nothing."""
        for line in self.alive():
            try:
                psutil.Process(int(line.split()[0])).kill()
            except psutil.Error:
                continue
