"""What is packed is what comes out, without the code of other GPUs; damage is noticed."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reprise.eval.gpu.pack import pack as packing
from reprise.eval.gpu.pack import unpack as unpacking
from reprise.eval.gpu.pack.device_code import MACHINE_CODE, MAGIC, PTX, keep_only
from reprise.eval.report.command_line import run_command

OWN, OTHER = 90, 80


def container(*entries: tuple[int, int, bytes]) -> bytes:
    """As CUDA's compiler writes it: kind, architecture and code of each."""
    body = b"".join(
        struct.pack("<HHIQ", kind, 0, 64, len(code))
        + bytes(12)
        + struct.pack("<I", architecture)
        + bytes(32)
        + code
        for kind, architecture, code in entries
    )
    return MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


def test_code_of_other_gpus_is_zeroed_and_nothing_moves(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    own, other, ptx, alone = b"own" * 99, b"other" * 99, b"ptx" * 99, b"alone" * 99
    before = (
        b"ELF"
        + container((MACHINE_CODE, OTHER, other), (MACHINE_CODE, OWN, own), (PTX, OWN, ptx))
        + b"between"
        + container((MACHINE_CODE, OTHER, other), (PTX, OTHER, alone))
        + b"end"
    )
    library.write_bytes(before)
    assert keep_only(library, OWN) == (len(own) + len(alone), 2 * len(other) + len(ptx))
    after = library.read_bytes()
    expected = before.replace(other, bytes(len(other))).replace(ptx, bytes(len(ptx)))
    assert after == expected
    assert keep_only(library, OTHER)[0] > 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no code at all",
        MAGIC,
        MAGIC + struct.pack("<HHQ", 1, 16, 1 << 40),
        MAGIC + struct.pack("<HHQ", 2, 16, 64) + bytes(64),
        MAGIC + struct.pack("<HHQ", 1, 16, 64) + bytes([99]) * 64,
        container((MACHINE_CODE, OTHER, b"x" * 50))[:-1],
        MAGIC + struct.pack("<HHQ", 1, 16, 20) + struct.pack("<HHIQ", 2, 0, 20, 0) + bytes(4),
    ],
)
def test_what_does_not_look_like_code_stays(tmp_path: Path, content: bytes) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(content)
    assert keep_only(library, OWN) == (0, 0)
    assert library.read_bytes() == content


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as pip fills it, whose large files are small."""
    monkeypatch.setattr(packing, "LARGE_BYTES", 50_000)
    folder = tmp_path / "site"
    (folder / "torch/lib").mkdir(parents=True)
    (folder / "nvidia").mkdir()
    code = container((MACHINE_CODE, OTHER, b"y" * 30_000), (MACHINE_CODE, OWN, b"n" * 500))
    (folder / "torch/lib/libtorch.so").write_bytes(os.urandom(40_000) + code)
    (folder / "torch/lib/libtorch.so").chmod(0o755)
    (folder / "torch/lib/libsmall.so.1").write_bytes(code[:200] + code)
    (folder / "torch/__init__.py").write_text("x = 1\n")
    (folder / "torch/static.a").write_text("not read")
    (folder / "torch/link").symlink_to("__init__.py")
    (folder / "nvidia/libcublas.so").write_bytes(b"the host has it")
    return folder


def packed(site: Path, out: Path, **options: Any) -> dict[str, Any]:
    return packing.pack(
        site,
        out,
        architecture=OWN,
        part_bytes=9_000,
        leave_out=("nvidia/*",),
        preset=0,
        workers=2,
        **options,
    )


def test_all_comes_out_on_the_other_side(site: Path, tmp_path: Path) -> None:
    out, target = tmp_path / "parts", tmp_path / "target"
    before = (site / "torch/lib/libtorch.so").read_bytes()
    manifest = packed(site, out)
    assert (site / "torch/lib/libtorch.so").read_bytes() == before, "what is packed is a copy"
    sizes = [(out / part["name"]).stat().st_size for part in manifest["parts"]]
    assert len(sizes) > 3
    assert max(sizes) <= 9_000
    # As on the host: with Python alone.
    command = [sys.executable, "-I", str(out / "unpack.py"), str(out), str(target), "--workers=2"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert "2 pieces" in said
    for name in ("torch/lib/libtorch.so", "torch/lib/libsmall.so.1"):
        keep_only(site / name, OWN)
        assert (target / name).read_bytes() == (site / name).read_bytes()
    assert (target / "torch/lib/libtorch.so").stat().st_mode & 0o777 == 0o755
    assert (target / "torch/__init__.py").read_text() == "x = 1\n"
    assert (target / "torch/link").readlink() == Path("__init__.py")
    found = {path.relative_to(target).as_posix() for path in target.rglob("*.*")}
    assert not found & {"torch/static.a", "nvidia/libcublas.so"}
    assert {path.name for path in target.iterdir()} == {"torch"}, "nothing is left over"


def test_damage_and_loss_are_noticed(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    manifest = packed(site, out)
    part = out / manifest["parts"][1]["name"]
    good = part.read_bytes()
    part.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(unpacking.UnpackError, match=f"{part.name} is damaged"):
        unpacking.unpack(out, tmp_path / "target")
    part.unlink()
    with pytest.raises(unpacking.UnpackError, match=f"{part.name} is missing"):
        unpacking.unpack(out, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    with pytest.raises(unpacking.UnpackError, match=r"manifest\.json"):
        unpacking.unpack(tmp_path, tmp_path / "target")


@pytest.mark.parametrize("path", ["../out.so", "/out.so"])
def test_nothing_leaves_the_folder(site: Path, tmp_path: Path, path: str) -> None:
    out = tmp_path / "parts"
    manifest = packed(site, out)
    manifest["pieces"][0]["path"] = path
    (out / unpacking.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(unpacking.UnpackError, match="would leave the folder"):
        unpacking.unpack(out, tmp_path / "target", workers=1)


def test_the_command_says_what_it_did_and_what_is_wrong(
    site: Path, tmp_path: Path, capsys: Any
) -> None:
    def run(*arguments: object) -> int:
        return run_command(packing.main, [str(each) for each in arguments], name="pack.py")

    out = tmp_path / "parts"
    assert run(site, out, "--preset", 0, "--workers", 1) == 0
    assert "parts: 1, " in capsys.readouterr().out
    assert run(site, out) == 2
    assert "expected an empty folder" in capsys.readouterr().err
    assert run(tmp_path / "nowhere", out) == 2
    assert run("--help") == 0
    assert "--architecture" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler is here")
def test_the_missing_functions_of_nccl_compile(tmp_path: Path) -> None:
    source = Path(packing.__file__).with_name("missing_nccl.c")
    library = tmp_path / "missing_nccl.so"
    subprocess.run(["gcc", "-Wall", "-shared", "-fPIC", "-o", library, source], check=True)
    assert b"ncclCommSuspend" in library.read_bytes()
