"""A real Milvus Lite of one's own, served on a port by a process that can be killed and frozen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from reprise.eval.live.server_process import ServerProcess

_STARTS_WITHIN_S = 200.0


def is_milvus_installed() -> bool:
    """Return whether pymilvus and Milvus Lite can be imported here."""
    return all(importlib.util.find_spec(name) for name in ("pymilvus", "milvus_lite"))


class MilvusServer(ServerProcess):
    """One Milvus Lite process on a port and with data that it keeps over restarts."""

    def __init__(self) -> None:
        super().__init__("Milvus Lite", starts_within_s=_STARTS_WITHIN_S)

    @property
    def url(self) -> str:
        """As `retrieval.search` names it."""
        return f"milvus://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of its process; None while it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def num_bytes(self) -> int:
        """Of its files."""
        return sum(path.stat().st_size for path in Path(self._folder).rglob("*") if path.is_file())

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", self._folder]
        return [*command, "--port", str(self.port)]
