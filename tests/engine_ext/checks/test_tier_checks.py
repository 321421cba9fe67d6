"""What `--kv-tiers` is told on machines that cannot do what it asks for."""

import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprise.engine_ext.checks import tier_checks
from reprise.engine_ext.checks.kv_tiers import parse_kv_tiers
from reprise.engine_ext.checks.tier_checks import check_kv_tiers


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_checks.metadata, "version", lambda _: "0.32.0")


def found(text: str) -> list[Any]:
    return check_kv_tiers(parse_kv_tiers(text))


@pytest.mark.parametrize("text", ["cpu=1MiB", "lmcache=localhost:1"])
def test_a_cpu_build_has_nothing_to_offload(text: str) -> None:
    (finding,) = found(text)
    assert finding.is_fatal
    assert "computes on the CPU" in finding.problem


def test_both_builds_for_the_cpu_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, is_cpu in (("0.32.0+cpu", True), ("0.32.0", False), ("0.32.0+cu130", False)):
        monkeypatch.setattr(tier_checks.metadata, "version", lambda _, given=version: given)
        assert tier_checks.is_cpu_build() is is_cpu


@pytest.mark.usefixtures("gpu_build")
def test_what_fits_is_fine(tmp_path: Path) -> None:
    assert found(f"cpu=1MiB,disk={tmp_path}/new/folder:1MiB") == []
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("gpu_build")
def test_more_than_shared_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    (finding,) = found("cpu=8GiB")
    assert finding.is_fatal
    assert finding.problem == "cpu=8.0 GiB does not fit: 0.1 GiB free in /dev/shm"


@pytest.mark.usefixtures("gpu_build")
def test_a_full_disk_is_no_reason_not_to_start(tmp_path: Path) -> None:
    (finding,) = found(f"cpu=1MiB,disk={tmp_path}:9000TiB")
    assert not finding.is_fatal


@pytest.mark.usefixtures("gpu_build")
def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = found(f"cpu=1MiB,disk={tmp_path}/file/kv:1MiB")
    assert finding.problem == f"{tmp_path}/file is no folder"


@pytest.mark.usefixtures("gpu_build")
def test_a_vllm_without_such_tiers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tier_checks, "_TIERS_OF_VLLM", Path("nowhere.py"))
    (finding,) = found(f"cpu=1MiB,disk={tmp_path}:1MiB")
    assert finding.is_fatal
    assert found("cpu=1MiB") == []


@pytest.mark.usefixtures("gpu_build")
def test_an_lmcache_server(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = found("lmcache=localhost:1")
    assert (finding.problem, finding.is_fatal) == ("the package lmcache is not installed", True)
    monkeypatch.setattr(tier_checks.util, "find_spec", lambda _: object())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert found(f"lmcache=127.0.0.1:{port}") == []
    (finding,) = found(f"lmcache=127.0.0.1:{port}")
    assert not finding.is_fatal
    assert f"no LMCache at 127.0.0.1:{port}" in finding.problem
