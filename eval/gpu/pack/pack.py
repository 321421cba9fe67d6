"""Pack an installed vLLM for a GPU host without network, in parts of a bounded size.

    python eval/gpu/pack/pack.py SITE OUT --architecture 90

SITE is a folder that pip has filled (`pip install --target`); see README.md beside this file. The
code of other GPUs is left out of a copy of its libraries, static libraries and compiled Python are
not packed, and the rest is compressed by xz, large libraries in parallel. OUT gets `part-000`,
`part-001` and so on, `manifest.json` with the digests of all, and `unpack.py`.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

from reprise.eval.gpu.pack import unpack
from reprise.eval.gpu.pack.device_code import keep_only
from reprise.eval.report.command_line import InputError, run_command

LARGE_BYTES = 8 << 20
"""Files from here on are compressed by themselves, so that several cores have something to do."""
NEVER_READ = ("*.a", "*.pyc")
"""Headers are: Triton compiles against its own."""
_CHUNK_BYTES = 1 << 20


def main(
    site: Annotated[Path, typer.Argument(help="Folder that pip has installed packages into.")],
    out: Annotated[Path, typer.Argument(help="Folder for the parts; must be empty or new.")],
    architecture: Annotated[
        int, typer.Option(min=50, help="Of the host's GPU: its compute capability, 90 for 9.0.")
    ] = 90,
    part_mib: Annotated[int, typer.Option(min=1, help="Size of a part at most.")] = 58,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of paths in SITE that the host has already; may be repeated."),
    ] = None,
    preset: Annotated[int, typer.Option(min=0, max=9, help="Of xz: how hard it tries.")] = 6,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; else one a core.")] = None,
) -> int:
    """Pack an installed vLLM for a GPU host without network."""
    if not site.is_dir():
        raise InputError(f"{site}: no such folder")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: expected an empty folder or a new one")
    manifest = pack(
        site,
        out,
        architecture=architecture,
        part_bytes=part_mib << 20,
        leave_out=leave_out or (),
        preset=preset,
        workers=workers,
    )
    total = sum(part["bytes"] for part in manifest["parts"])
    print(f"parts: {len(manifest['parts'])}, {total / 2**20:.1f} MiB, in {out}")
    return 0


def pack(
    site: Path,
    out: Path,
    *,
    architecture: int,
    part_bytes: int,
    leave_out: Sequence[str] = (),
    preset: int = 6,
    workers: int | None = None,
) -> dict[str, Any]:
    """Pack a folder; returns the manifest that is written.

    Args:
        site: what to pack; not changed.
        out: where the parts go.
        architecture: whose code stays in libraries.
        part_bytes: size of a part at most.
        leave_out: patterns of paths relative to `site` that are not packed.
        preset: of xz.
        workers: processes; None: one for each core.
    """
    large: list[Path] = []
    small: list[Path] = []
    for path in _wanted(site, leave_out):
        is_large = not path.is_symlink() and path.stat().st_size >= LARGE_BYTES
        (large if is_large else small).append(path)
    large.sort(key=lambda path: -path.stat().st_size)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        jobs = [
            (str(path), str(Path(scratch) / str(number)), architecture, preset)
            for number, path in enumerate(large)
        ]
        with ProcessPoolExecutor(workers) as pool:
            compressed = list(pool.map(_compress, jobs))
        pieces = [
            {
                "path": path.relative_to(site).as_posix(),
                "mode": path.stat().st_mode & 0o777,
                "bytes": file.stat().st_size,
            }
            for path, file in zip(large, compressed, strict=True)
        ]
        rest = Path(scratch) / "rest"
        _archive(site, small, rest, architecture=architecture, preset=preset)
        pieces.append({"path": None, "mode": 0, "bytes": rest.stat().st_size})
        parts = list(_split([*compressed, rest], out, part_bytes))
    manifest = {"version": 1, "architecture": architecture, "pieces": pieces, "parts": parts}
    (out / unpack.MANIFEST).write_text(json.dumps(manifest, indent=1))
    shutil.copy(unpack.__file__, out)
    return manifest


def _wanted(site: Path, leave_out: Sequence[str]) -> Iterator[Path]:
    """Files and links of a folder that are packed, in order."""
    for path in sorted(site.rglob("*")):
        name = path.relative_to(site).as_posix()
        is_packed = path.is_symlink() or not path.is_dir()
        if is_packed and not any(fnmatch(name, each) for each in (*NEVER_READ, *leave_out)):
            yield path


def _compress(job: tuple[str, str, int, int]) -> Path:
    """Compress one library, without the code of other GPUs."""
    path, out, architecture, preset = job
    copy = Path(f"{out}.copy")
    shutil.copyfile(path, copy)
    keep_only(copy, architecture)
    with copy.open("rb") as opened, lzma.open(out, "wb", preset=preset) as packed:
        shutil.copyfileobj(opened, packed, _CHUNK_BYTES)
    copy.unlink()
    return Path(out)


def _archive(
    site: Path, paths: Sequence[Path], out: Path, *, architecture: int, preset: int
) -> None:
    """Compress all that is small together."""
    with (
        lzma.open(out, "wb", preset=preset) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
        tempfile.TemporaryDirectory() as tmp,
    ):
        for path in paths:
            source = path
            if ".so" in path.name and not path.is_symlink():
                source = Path(shutil.copy(path, tmp))
                keep_only(source, architecture)
            archive.add(source, path.relative_to(site).as_posix(), recursive=False)


def _split(files: Sequence[Path], out: Path, part_bytes: int) -> Iterator[dict[str, Any]]:
    """Write files one after the other into parts; yields the manifest's entry of each."""
    stream = _chunks(files)
    rest = b""
    for number in range(sys.maxsize):
        path, written, digest = out / f"part-{number:03d}", 0, hashlib.sha256()
        with path.open("wb") as part:
            while written < part_bytes:
                rest = rest or next(stream, b"")
                if not rest:
                    break
                now, rest = rest[: part_bytes - written], rest[part_bytes - written :]
                part.write(now)
                digest.update(now)
                written += len(now)
        if not written:
            path.unlink()
            return
        yield {"name": path.name, "bytes": written, "sha256": digest.hexdigest()}


def _chunks(files: Sequence[Path]) -> Iterator[bytes]:
    for file in files:
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                yield chunk


if __name__ == "__main__":
    sys.exit(run_command(main, name="pack.py"))
