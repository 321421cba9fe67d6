"""A vector index in one file, so that a restart neither embeds nor builds its graph again.

Layout: `RPINDEX1`, the faiss indexes and the float32 rows one after the other, a MessagePack table
of contents, its length (8 bytes, little endian) and the CRC-32 of all before it (4 bytes). The
checksum is verified before anything is interpreted.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from reprise.retrieval.host.private_files import check_ours, replacing
from reprise.retrieval.search.answer_index import NamespaceParts
from reprise.retrieval.search.faiss_library import faiss

_MAGIC = b"RPINDEX1"
_TRAILER_BYTES = 12
_CHUNK = 1 << 20


class SnapshotError(ValueError):
    """This file is no snapshot that can be used here."""


class _Section(msgspec.Struct, array_like=True, frozen=True):
    """One namespace; offsets are from the beginning of the file."""

    namespace: str
    graph_offset: int | None
    graph_ids: list[str | None]
    tail_offset: int
    tail_ids: list[str]
    marks: dict[str, bytes]


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    identity: str
    dim: int
    sections: list[_Section]


class _Checked:
    """Writes to a file and keeps the checksum of what it wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.crc, self.offset = file, 0, 0

    def write(self, data: bytes) -> int:
        self.crc = zlib.crc32(data, self.crc)
        self.offset += len(data)
        return self._file.write(data)


def write_snapshot(
    path: Path, namespaces: Sequence[NamespaceParts], *, identity: str, dim: int
) -> None:
    """Write an index's parts; whoever reads `path` sees the old file or the new one, whole.

    Args:
        identity: What made the vectors and how they are searched; must be the same to read.
        dim: Length of each vector.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as file:
        _write(_Checked(file), namespaces, identity, dim)
        file.flush()
        os.fsync(file.fileno())


def read_snapshot(path: Path, *, identity: str, dim: int) -> list[NamespaceParts]:
    """Return the parts in a file.

    Raises:
        SnapshotError: Damaged, of another layout, or of another identity.
        OSError: The file cannot be read.
    """
    check_ours(path)
    with path.open("rb") as file:
        contents = _contents(file)
        if (contents.identity, contents.dim) != (identity, dim):
            raise SnapshotError(f"it was made with {contents.identity}, not with {identity}")
        try:
            return [_read_section(file, section, dim) for section in contents.sections]
        except (RuntimeError, ValueError) as error:
            raise SnapshotError(f"its index is not readable: {error}") from error


def _write(file: _Checked, namespaces: Sequence[NamespaceParts], identity: str, dim: int) -> None:
    file.write(_MAGIC)
    sections = []
    for parts in namespaces:
        graph_offset = None
        if parts.graph is not None:
            graph_offset = file.offset
            faiss.write_index(parts.graph, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined, unused-ignore]
        sections.append(
            _Section(
                parts.namespace,
                graph_offset,
                parts.graph_ids,
                file.offset,
                parts.tail_ids,
                parts.marks,
            )
        )
        file.write(parts.tail.astype("<f4", copy=False).tobytes())
    table = msgspec.msgpack.encode(_Contents(identity, dim, sections))
    file.write(table)
    file.write(len(table).to_bytes(8, "little"))
    file.write(file.crc.to_bytes(4, "little"))


def _contents(file: BinaryIO) -> _Contents:
    size = os.fstat(file.fileno()).st_size
    if size < len(_MAGIC) + _TRAILER_BYTES or file.read(len(_MAGIC)) != _MAGIC:
        raise SnapshotError("it is no snapshot of this layout")
    crc, left = zlib.crc32(_MAGIC), size - len(_MAGIC) - 4
    while left > 0:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            break
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    if file.read(4) != crc.to_bytes(4, "little"):
        raise SnapshotError("its checksum does not match")
    file.seek(size - _TRAILER_BYTES)
    length = int.from_bytes(file.read(8), "little")
    if length > size - _TRAILER_BYTES - len(_MAGIC):
        raise SnapshotError("its table of contents is longer than the file")
    file.seek(size - _TRAILER_BYTES - length)
    try:
        return msgspec.msgpack.decode(file.read(length), type=_Contents)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"its table of contents is not readable: {error}") from error


def _read_section(file: BinaryIO, section: _Section, dim: int) -> NamespaceParts:
    graph: Any | None = None
    if section.graph_offset is not None:
        file.seek(section.graph_offset)
        graph = faiss.read_index(faiss.PyCallbackIOReader(file.read))  # type: ignore[attr-defined, unused-ignore]
        if (graph.d, graph.ntotal) != (dim, len(section.graph_ids)):
            raise SnapshotError(f"expected {len(section.graph_ids)} vectors of {dim} dimensions")
    file.seek(section.tail_offset)
    data = file.read(4 * dim * len(section.tail_ids))
    tail = np.frombuffer(data, dtype="<f4").reshape(len(section.tail_ids), dim)
    return NamespaceParts(
        namespace=section.namespace,
        graph=graph,
        graph_ids=section.graph_ids,
        tail_ids=section.tail_ids,
        tail=tail,
        marks=section.marks,
    )
