"""Unix sockets at paths of any length, such as a long TMPDIR gives; who is at the other end."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

MAX_ADDRESS_BYTES = 107
"""What fits into `sockaddr_un`, beside the null byte."""


@contextlib.contextmanager
def short_address(path: str) -> Iterator[str]:
    """Yield a name for the socket at `path` that the kernel takes; good inside the block only.

    Not an abstract socket: those have no permissions, and what is said here are prompts.

    Raises:
        OSError: The folder is not there.
    """
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        yield path
        return
    folder = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{Path(path).name}"
    finally:
        os.close(folder)


def peer_pid(connection: socket.socket) -> int:
    """Return the process at the other end."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return int(pid)
