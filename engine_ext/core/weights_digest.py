"""Digests of model files: of small ones all bytes, of weights the headers and sampled blocks."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from reprise.retrieval.host.private_files import claim_folder, replacing

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_TEXT_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
SAMPLED_BYTES = 256 << 20
"""Of all weights together: a third of a second of hashing. Smaller models are read whole."""
_BLOCK_BYTES = 16 << 10
_READ_BYTES = 1 << 20
# A damaged length must not make the reader allocate without bound.
_MAX_HEADER_BYTES = 256 << 20
_DIGEST_BYTES = 16


class _Extent(NamedTuple):
    """Bytes of a file that belong together: a tensor's."""

    name: str
    """With the tensor's data type and shape."""
    begin: int
    end: int


class FileState(NamedTuple):
    """What changes when a file does; the time of its last change cannot be set by hand."""

    name: str
    num_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int


def model_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return a folder's weights, and its other files that determine outputs: configuration,
    tokenizer, chat template, code. A path to a file is weights alone.

    Raises:
        OSError: It cannot be read.
    """
    if folder.is_file():
        return [folder], []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix in WEIGHT_SUFFIXES]
    return weights, [path for path in files if path.suffix in _TEXT_SUFFIXES]


def states_of(files: Iterable[Path]) -> list[FileState]:
    """Return the files as they are now.

    Raises:
        OSError: One is not there.
    """
    stats = [(path.name, path.stat()) for path in files]
    return [
        FileState(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev)
        for name, s in stats
    ]


def digest_files(files: Sequence[Path]) -> str:
    """Return a digest of the names and all bytes of files.

    Raises:
        OSError: One cannot be read.
    """
    hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for path in sorted(files):
        hasher.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                hasher.update(block)
    return hasher.hexdigest()


def digest_weights(files: Sequence[Path], *, sampled_bytes: int = SAMPLED_BYTES) -> str:
    """Return a digest of every tensor's name, data type, shape and bytes, or blocks of them.

    Blocks of 16 KiB are spread evenly over each tensor, its first and last bytes among them. The
    files' names and the order of tensors do not matter; where they are not safetensors, each file
    counts as one tensor.

    Args:
        files: The weights.
        sampled_bytes: Read so many of all files, about; all of them if there are no more.

    Raises:
        OSError: One cannot be read.
        ValueError: A safetensors file is damaged.
    """
    total = sum(path.stat().st_size for path in files)
    share = min(1.0, sampled_bytes / max(1, total))
    digests = []
    for path in files:
        with path.open("rb") as file:
            for extent in _extents(path, file.fileno()):
                hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
                hasher.update(f"{extent.name} {extent.end - extent.begin}\n".encode())
                for begin, num_bytes in _blocks(extent, share):
                    hasher.update(_read(file.fileno(), begin, num_bytes))
                digests.append(hasher.digest())
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=_DIGEST_BYTES).hexdigest()


def cached_weights_digest(files: Sequence[Path], cache_folder: Path | None) -> str:
    """Return `digest_weights`, remembered in a file as long as the weights do not change.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is damaged, or changes meanwhile.
    """
    before = states_of(files)
    cache = None
    if cache_folder is not None and files:
        where = hashlib.blake2b(str(files[0].parent.resolve()).encode(), digest_size=8)
        cache = cache_folder / f"weights-{where.hexdigest()}.json"
        if (found := _read_cache(cache, before)) is not None:
            return found
    digest = digest_weights(files)
    if states_of(files) != before:
        raise ValueError("the weights' files are being changed")
    if cache is not None:
        _write_cache(cache, before, digest)
    return digest


def _read_cache(path: Path, states: Sequence[FileState]) -> str | None:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        is_same = held["files"] == [list(state) for state in states]
        return str(held["digest"]) if is_same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(path: Path, states: Sequence[FileState], digest: str) -> None:
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        claim_folder(path.parent)
        with replacing(path) as file:
            file.write(json.dumps({"files": states, "digest": digest}).encode())
    except OSError:
        return  # the next start reads the weights again


def _extents(path: Path, descriptor: int) -> list[_Extent]:
    """Return a file's tensors."""
    size = os.fstat(descriptor).st_size
    if path.suffix != ".safetensors":
        return [_Extent(path.name, 0, size)]
    length = int.from_bytes(_read(descriptor, 0, 8), "little")
    if length > min(size, _MAX_HEADER_BYTES):
        raise ValueError(f"{path.name} is no safetensors file: a header of {length} bytes")
    header = json.loads(_read(descriptor, 8, length))
    header.pop("__metadata__", None)
    try:
        extents = [
            _Extent(
                f"{name} {tensor['dtype']} {tensor['shape']}",
                *(8 + length + int(offset) for offset in tensor["data_offsets"]),
            )
            for name, tensor in header.items()
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no safetensors file: {error!r}") from None
    if any(not 8 + length <= begin <= end <= size for _, begin, end in extents):
        raise ValueError(f"{path.name} is no safetensors file: tensors beyond its end")
    return extents


def _blocks(extent: _Extent, share: float) -> Iterator[tuple[int, int]]:
    """Yield (begin, bytes) of what is read of a tensor."""
    size = extent.end - extent.begin
    count = max(2, int(size * share / _BLOCK_BYTES))
    if share >= 1.0 or size <= count * _BLOCK_BYTES:
        for begin in range(extent.begin, extent.end, _READ_BYTES):
            yield begin, min(_READ_BYTES, extent.end - begin)
        return
    for number in range(count):
        yield extent.begin + number * (size - _BLOCK_BYTES) // (count - 1), _BLOCK_BYTES


def _read(descriptor: int, begin: int, num_bytes: int) -> bytes:
    """Return bytes of a file.

    Raises:
        ValueError: It ends before.
    """
    block = os.pread(descriptor, num_bytes, begin)
    while len(block) < num_bytes:
        more = os.pread(descriptor, num_bytes - len(block), begin + len(block))
        if not more:
            raise ValueError("a file of weights ends too early")
        block += more
    return block
