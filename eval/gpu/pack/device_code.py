"""Leaves out of libraries the code of GPUs that are not the host's: most of what PyTorch weighs.

CUDA libraries carry their kernels compiled for every architecture, in containers that start with a
magic number ("fatbin"): a header of 16 bytes, then entries with a header of their own each, either
machine code (kind 2) of one architecture or PTX (kind 1), which is compiled where machine code is
missing. Entries of others are filled with zeros, which compress to nothing, and no offset changes.
The layout is not documented by NVIDIA; what does not look like it is left as it is.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = b"\x50\xed\x55\xba"
PTX, MACHINE_CODE = 1, 2
_VERSION, _HEADER_BYTES = 1, 16
_KINDS = (1, 2, 4, 8, 16, 32, 64)
_HEADER, _ENTRY = "<4sHHQ", "<HHIQ"
_ARCHITECTURE_AT = 28
_MAX_ENTRY_HEADER_BYTES = 4096


class Entry(NamedTuple):
    """The code of one architecture."""

    kind: int
    architecture: int
    """Compute capability, as 90 for 9.0."""
    begin: int
    size: int


def keep_only(library: Path, architecture: int) -> tuple[int, int]:
    """Fill the code of other architectures with zeros, in place.

    PTX stays where there is no machine code of `architecture` beside it.

    Returns:
        Bytes of code that were kept, and that were zeroed.
    """
    kept = zeroed = 0
    with library.open("r+b") as file:
        if not library.stat().st_size:
            return 0, 0
        with mmap.mmap(file.fileno(), 0) as memory:
            for entries in _containers(memory):
                has_own = any(_is_own(each, architecture) for each in entries)
                for each in entries:
                    is_other = each.kind == MACHINE_CODE and not _is_own(each, architecture)
                    if is_other or (each.kind == PTX and has_own):
                        memory[each.begin : each.begin + each.size] = bytes(each.size)
                        zeroed += each.size
                    else:
                        kept += each.size
    return kept, zeroed


def _is_own(entry: Entry, architecture: int) -> bool:
    return entry.kind == MACHINE_CODE and entry.architecture == architecture


def _containers(memory: mmap.mmap) -> Iterator[list[Entry]]:
    """Yield the entries of each container that is laid out as expected."""
    place = memory.find(MAGIC)
    while place >= 0:
        entries, end = _entries(memory, place)
        if entries:
            yield entries
        place = memory.find(MAGIC, end)


def _entries(memory: mmap.mmap, place: int) -> tuple[list[Entry], int]:
    """Return a container's entries and its end; none, and where to look on, if it is not one."""
    beyond = place + len(MAGIC)
    if place + _HEADER_BYTES > len(memory):
        return [], beyond
    _, version, header_bytes, size = struct.unpack_from(_HEADER, memory, place)
    at = place + _HEADER_BYTES
    end = at + size
    if version != _VERSION or header_bytes != _HEADER_BYTES or not size or end > len(memory):
        return [], beyond
    entries = []
    while at < end:
        if at + _ARCHITECTURE_AT + 4 > end:
            return [], beyond
        kind, _, entry_header_bytes, code_bytes = struct.unpack_from(_ENTRY, memory, at)
        begin = at + entry_header_bytes
        is_odd = kind not in _KINDS or not entry_header_bytes > _HEADER_BYTES
        if is_odd or entry_header_bytes >= _MAX_ENTRY_HEADER_BYTES or begin + code_bytes > end:
            return [], beyond
        (architecture,) = struct.unpack_from("<I", memory, at + _ARCHITECTURE_AT)
        entries.append(Entry(kind, architecture, begin, code_bytes))
        at = begin + code_bytes
    return entries, end
