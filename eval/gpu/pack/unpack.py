"""Unpack what `pack.py` has packed: on a host without network, with Python alone.

    python3 unpack.py PARTS TARGET

PARTS is the folder with `manifest.json` and the parts; this file lies there too. Everything is
checked against the manifest's digests before it is used. Large libraries are unpacked in parallel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import shutil
import sys
import tarfile
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20


class UnpackError(RuntimeError):
    """What was carried is not what was packed; the message is one line."""


def unpack(parts: Path, target: Path, *, workers: int | None = None) -> int:
    """Unpack all parts into a folder.

    Args:
        parts: the folder with the manifest and the parts.
        target: where to; made if it is not there.
        workers: processes; None: one for each core.

    Returns:
        How many pieces there were.

    Raises:
        UnpackError: a part is missing or damaged, or a piece would leave the folder.
    """
    try:
        manifest = json.loads((parts / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UnpackError(f"{parts / MANIFEST}: {error}") from error
    for part in manifest["parts"]:
        if not (parts / part["name"]).is_file():
            raise UnpackError(f"part {part['name']} is missing")
        if _digest(parts / part["name"]) != part["sha256"]:
            raise UnpackError(f"part {part['name']} is damaged")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        pieces = _cut([parts / part["name"] for part in manifest["parts"]], manifest, Path(scratch))
        jobs = [(str(file), piece, str(target)) for file, piece in pieces]
        with ProcessPoolExecutor(workers) as pool:
            for _ in pool.map(_unpack_piece, jobs):
                pass
    return len(jobs)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _cut(parts: list[Path], manifest: dict[str, Any], scratch: Path) -> list[tuple[Path, Any]]:
    """Cut the stream that the parts are into pieces, a file each."""
    found = []
    waiting = iter(parts)
    part = open(next(waiting), "rb") if parts else None  # noqa: SIM115
    for number, piece in enumerate(manifest["pieces"]):
        file = scratch / str(number)
        left = piece["bytes"]
        with file.open("wb") as out:
            while left:
                assert part is not None
                read = part.read(min(left, _CHUNK_BYTES))
                if not read:
                    part.close()
                    part = open(next(waiting), "rb")  # noqa: SIM115
                    continue
                out.write(read)
                left -= len(read)
        found.append((file, piece))
    if part is not None:
        part.close()
    return found


def _unpack_piece(job: tuple[str, dict[str, Any], str]) -> None:
    """One library, or the archive of all that is small."""
    file, piece, target = job
    if piece["path"] is None:
        with tarfile.open(file, "r:xz") as archive:
            archive.extractall(target, filter="data")
        return
    path = PurePosixPath(piece["path"])
    if path.is_absolute() or ".." in path.parts:
        raise UnpackError(f"{path} would leave the folder")
    out = Path(target) / path
    out.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(file) as packed, out.open("wb") as opened:
        shutil.copyfileobj(packed, opened, _CHUNK_BYTES)
    os.chmod(out, piece["mode"])


def main() -> int:
    """Arguments: the folder with the parts, and where to unpack to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", type=Path, help="folder with manifest.json and the parts")
    parser.add_argument("target", type=Path, help="folder to unpack into")
    parser.add_argument("--workers", type=int, help="processes; default: one for each core")
    given = parser.parse_args()
    try:
        count = unpack(given.parts, given.target, workers=given.workers)
    except UnpackError as error:
        print(f"unpack.py: {error}", file=sys.stderr)
        return 2
    print(f"{count} pieces unpacked into {given.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
