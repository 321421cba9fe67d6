"""The tier of files behind host memory: vLLM's, in a folder for each set of weights, and bounded.

The rest of vLLM's tiers needs a GPU; blocks of host memory are all that this one reads and writes.
"""

import contextlib
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import ReqContext, make_offload_key
from vllm.v1.kv_offload.tiering.base import TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

from reprise.engine_ext.checks.kv_tiers import parse_kv_tiers, transfer_config
from reprise.engine_ext.scheduling import folder_bound
from reprise.engine_ext.scheduling.disk_tier import DiskTier
from reprise.engine_ext.scheduling.folder_bound import FolderBound, trim

BLOCK_BYTES = 4096


def write(folder: Path, name: str, num_bytes: int, used_s: float) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    with contextlib.suppress(FileNotFoundError):  # who bounds the folder may have been there
        os.utime(path, (used_s, used_s))
    return path


def test_files_that_nobody_used_for_longest_go(tmp_path: Path) -> None:
    files = [write(tmp_path, f"weights-{n % 2}/{n}.bin", 100, 1000.0 + n) for n in range(10)]
    kept = write(tmp_path, "weights-0/config.json", 5000, 1.0)
    assert trim(tmp_path, 1000) == 0
    os.utime(files[0], (2000.0, 1000.0))  # read since
    assert trim(tmp_path, 700) == 4  # to nine tenths
    assert [file.exists() for file in files] == [True, *[False] * 4, *[True] * 5]
    assert kept.exists()


def test_a_file_that_cannot_be_removed_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, *others = [write(tmp_path, f"{n}.bin", 100, 1000.0 + n) for n in range(4)]
    unlink = os.unlink

    def refuse(path: str, **options: Any) -> None:
        if path == str(stays):
            raise PermissionError("not yours")
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError, match="not yours"):
        trim(tmp_path, 250)
    assert [each.exists() for each in (stays, *others)] == [True, False, False, True]


def test_what_is_being_written_is_left_alone(tmp_path: Path) -> None:
    young = write(tmp_path, "a.bin_1.tmp", 1000, 1e12)
    old = write(tmp_path, "b.bin_2.tmp", 1000, 1.0)
    assert trim(tmp_path, 10) == 1
    assert young.exists()
    assert not old.exists()


def test_a_folder_is_bounded_until_closed(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    bound = FolderBound(tmp_path, 250, every_s=0.01)
    first = write(tmp_path, "1.bin", 200, 1.0)
    write(tmp_path, "2.bin", 200, 2.0)
    wait_until(lambda: not first.exists())
    shutil.rmtree(tmp_path)  # it goes on without
    tmp_path.mkdir()
    first = write(tmp_path, "1.bin", 300, 1.0)
    wait_until(lambda: not first.exists())
    bound.close()
    assert not bound._thread.is_alive()


def test_looking_at_many_files_leaves_the_interpreter_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    for number in range(500):
        write(tmp_path, f"{number}/{number}.bin", 0, 1.0)
    bound = FolderBound(tmp_path, 250, every_s=0.0)
    assert bound._thread.ident is not None
    clock = time.pthread_getcpuclockid(bound._thread.ident)
    rests_s: list[float] = []
    wait = bound._is_closed.wait

    def noting(timeout: float) -> bool:
        rests_s.append(timeout)
        return wait(timeout)

    monkeypatch.setattr(bound._is_closed, "wait", noting)
    began_s = time.clock_gettime(clock)
    wait_until(lambda: time.clock_gettime(clock) - began_s > 0.1)
    # Some of it before what was noted began.
    assert sum(rests_s) > 4.0 * (time.clock_gettime(clock) - began_s)
    bound.close()


def test_a_look_at_many_files_ends_when_the_folder_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "1.bin", 300, 1.0)
    looks = threading.Event()
    monkeypatch.setattr(folder_bound, "_WORKS_S", 0.0)
    monkeypatch.setattr(folder_bound, "_RESTS_TIMES", 1e9)
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (looks.set(), scandir(path))[1])
    bound = FolderBound(tmp_path, 250, every_s=0.0)
    assert looks.wait(120)
    bound.close()
    assert (tmp_path / "1.bin").exists()


def tier_of(folder: Path, model: Path, memory: mmap.mmap) -> Any:
    """The tier that vLLM makes of what `--kv-tiers` becomes, over this host memory."""
    tiers = parse_kv_tiers(f"cpu=1GiB,disk={folder}:1GiB")
    (config,) = transfer_config(tiers, {})["kv_connector_extra_config"]["secondary_tiers"]
    view = memoryview(memory).cast("b", (len(memory) // BLOCK_BYTES, BLOCK_BYTES))
    parallel = SimpleNamespace(
        tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, rank=0, is_parallelism_agnostic=True
    )
    spec = SimpleNamespace(
        config=SimpleNamespace(
            groups=(),
            model=SimpleNamespace(name=str(model), dtype="float32"),
            cache=SimpleNamespace(tokens_per_hash=32),
            parallel=parallel,
            canonical_layout=False,
            replicated_layout=False,
        ),
        blocks_per_chunk=1,
        kv_events_config=SimpleNamespace(enable_kv_cache_events=False),
    )
    return SecondaryTierFactory.create_secondary_tier(config, view, spec)


def transfer(tier: Any, kind: str, chunk: int) -> bool:
    """Store or load one block, and return whether that worked."""
    job = TransferJob(
        job_id=chunk,
        keys=[make_offload_key(b"k" * 32, 0)],
        chunk_ids=np.array([chunk]),
        is_promotion=kind == "load",
        req_context=ReqContext(req_id="r"),
    )
    getattr(tier, f"submit_{kind}")(job)
    tier.drain_jobs()
    (result,) = tier.get_finished_jobs()
    return bool(result.success)


def test_blocks_come_back_to_the_same_weights_alone(tmp_path: Path, demo_model: Path) -> None:
    memory = mmap.mmap(-1, 3 * BLOCK_BYTES)  # pages: files are read and written without a cache
    memory[:BLOCK_BYTES] = b"\x07" * BLOCK_BYTES
    folder = tmp_path / "kv"
    others = tmp_path / "model"
    shutil.copytree(demo_model, others)
    tiers = []
    try:
        tiers.append(tier_of(folder, others, memory))
        assert isinstance(tiers[0], DiskTier)
        assert transfer(tiers[0], "store", 0)
        # After a restart.
        tiers.append(tier_of(folder, others, memory))
        assert transfer(tiers[1], "load", 1)
        assert memory[BLOCK_BYTES : 2 * BLOCK_BYTES] == memory[:BLOCK_BYTES]
        # The same name, trained a little further.
        (weights,) = others.glob("*.safetensors")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        tiers.append(tier_of(folder, others, memory))
        assert not transfer(tiers[2], "load", 2)
        assert not any(memory[2 * BLOCK_BYTES :])
    finally:
        for tier in tiers:
            tier.shutdown()
    assert folder.stat().st_mode & 0o077 == 0


def test_weights_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no files of weights"):
        tier_of(tmp_path / "kv", tmp_path / "empty", mmap.mmap(-1, BLOCK_BYTES))
    with pytest.raises(ValueError, match="were not found"):
        tier_of(tmp_path / "kv", Path("no/such-model"), mmap.mmap(-1, BLOCK_BYTES))
    assert not (tmp_path / "kv").exists()
