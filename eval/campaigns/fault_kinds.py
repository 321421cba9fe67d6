"""The faults of a campaign: each is begun, lived through by requests, and ended."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import psutil
import redis

from reprise.eval.live.redis_server import Proxy, RedisServer
from reprise.retrieval.api.tier_url import INDEX_ENDING

_PAGE_BYTES = 4096
_FREED_BYTES = 256 << 10


class Target(NamedTuple):
    """One server of ours, and what stands behind it."""

    name: str
    """redis or sqlite."""
    pid: int
    folder: Path
    """Where its SQLite file is, with its index snapshot."""
    redis: RedisServer | None
    proxy: Proxy | None
    """Between the server and `redis`."""


Fault = Callable[[Target, random.Random], AbstractContextManager[bool]]
"""Gives whether there was something to break; if not, requests live through nothing."""
SQLITE_FILE = "answers.sqlite"
"""In a target's folder; what Reprise puts beside it is called like it."""


class FaultKind(NamedTuple):
    """A kind of fault."""

    name: str
    begin: Fault
    targets: tuple[str, ...] = ("redis", "sqlite")
    weight: int = 4
    """How often it is drawn, beside the others."""


def retrieval_processes(target: Target) -> list[psutil.Process]:
    """Return the retrieval processes of a server that are running now."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(target.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("retrieval_process" in part for part in process.cmdline()):
                    found.append(process)
    return found


@contextlib.contextmanager
def no_fault(_target: Target, _random: random.Random) -> Iterator[bool]:
    """Do nothing: what requests themselves do is the fault."""
    yield True


@contextlib.contextmanager
def redis_killed(target: Target, _random: random.Random) -> Iterator[bool]:
    """Kill Redis; it comes back empty."""
    server = _redis(target)
    server.kill()
    try:
        yield True
    finally:
        server.start()


@contextlib.contextmanager
def redis_frozen(target: Target, _random: random.Random) -> Iterator[bool]:
    """Stop Redis where it is: connections stay open."""
    server = _redis(target)
    server.freeze()
    try:
        yield True
    finally:
        server.thaw()


@contextlib.contextmanager
def redis_slow(target: Target, random: random.Random) -> Iterator[bool]:
    """Delay each reply of Redis by 0.05 to 0.5 s."""
    proxy = _proxy(target)
    proxy.delay_s = random.uniform(0.05, 0.5)
    try:
        yield True
    finally:
        proxy.delay_s = 0.0


@contextlib.contextmanager
def redis_cut(target: Target, random: random.Random) -> Iterator[bool]:
    """Close Redis's connections in the middle of a reply."""
    proxy = _proxy(target)
    proxy.cut_after = random.randrange(200)
    try:
        yield True
    finally:
        proxy.cut_after = None


@contextlib.contextmanager
def redis_out_of_memory(target: Target, _random: random.Random) -> Iterator[bool]:
    """Let Redis refuse every write."""
    with _configured(target, "maxmemory", "1", "0"):
        yield True


@contextlib.contextmanager
def redis_wrong_password(target: Target, _random: random.Random) -> Iterator[bool]:
    """Ask for a password that the server does not have, of connections old and new."""
    with _configured(target, "requirepass", "another", ""):
        yield True


@contextlib.contextmanager
def redis_emptied(target: Target, _random: random.Random) -> Iterator[bool]:
    """Remove every key of Redis."""
    with _admin(target) as client:
        was_filled = client.dbsize() > 0
        client.flushall()
    yield was_filled


@contextlib.contextmanager
def retrieval_killed(target: Target, _random: random.Random) -> Iterator[bool]:
    """Kill the retrieval process."""
    yield _signal_retrieval(target, signal.SIGKILL)


@contextlib.contextmanager
def retrieval_frozen(target: Target, _random: random.Random) -> Iterator[bool]:
    """Stop the retrieval process where it is."""
    is_frozen = _signal_retrieval(target, signal.SIGSTOP)
    try:
        yield is_frozen
    finally:
        _signal_retrieval(target, signal.SIGCONT)


@contextlib.contextmanager
def retrieval_out_of_memory(target: Target, _random: random.Random) -> Iterator[bool]:
    """Let the retrieval process have no more memory than it has."""
    limited = []
    for process in retrieval_processes(target):
        with contextlib.suppress(psutil.Error, OSError):
            before = resource.prlimit(process.pid, resource.RLIMIT_AS)
            limit = process.memory_info().vms + _FREED_BYTES
            resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, before[1]))
            limited.append((process.pid, before))
    try:
        yield bool(limited)
    finally:
        for pid, before in limited:
            with contextlib.suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_AS, before)


@contextlib.contextmanager
def sqlite_corrupted(target: Target, random: random.Random) -> Iterator[bool]:
    """Overwrite a page of the SQLite file, and of its write-ahead log, with noise."""
    is_spoilt = _spoil(target.folder / SQLITE_FILE, random)
    _spoil(target.folder / f"{SQLITE_FILE}-wal", random)
    yield is_spoilt


@contextlib.contextmanager
def snapshot_corrupted(target: Target, random: random.Random) -> Iterator[bool]:
    """Overwrite a page of the index snapshot with noise and have it read again."""
    is_spoilt = _spoil(target.folder / f"{SQLITE_FILE}{INDEX_ENDING}", random)
    yield _signal_retrieval(target, signal.SIGKILL) and is_spoilt


@contextlib.contextmanager
def sqlite_removed(target: Target, _random: random.Random) -> Iterator[bool]:
    """Remove the SQLite file and all that is beside it."""
    was_there = (target.folder / SQLITE_FILE).exists()
    for path in target.folder.iterdir():
        path.unlink(missing_ok=True)
    yield was_there


@contextlib.contextmanager
def disk_full(target: Target, _random: random.Random) -> Iterator[bool]:
    """Fill the file system of the SQLite file."""
    filler = target.folder / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64 << 10))
        yield filler.exists()
    finally:
        filler.unlink(missing_ok=True)


@contextlib.contextmanager
def small_file_system(folder: Path, *, mib: int) -> Iterator[bool]:
    """Mount a file system of its own at `folder`; False where that is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "reprise", str(folder)]
    is_mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)


BURST, ABORTS, DISK_FULL = "preemption", "client aborts", "disk full"
"""Faults that the requests themselves are, and one that needs a file system of its own."""

FAULT_KINDS: tuple[FaultKind, ...] = (
    FaultKind("Redis killed", redis_killed, ("redis",)),
    FaultKind("Redis frozen", redis_frozen, ("redis",)),
    FaultKind("Redis slow", redis_slow, ("redis",)),
    FaultKind("Redis cut mid-reply", redis_cut, ("redis",)),
    FaultKind("Redis out of memory", redis_out_of_memory, ("redis",)),
    FaultKind("Redis wrong password", redis_wrong_password, ("redis",)),
    FaultKind("Redis emptied", redis_emptied, ("redis",), weight=2),
    FaultKind("retrieval killed", retrieval_killed, weight=3),
    FaultKind("retrieval frozen", retrieval_frozen),
    FaultKind("retrieval out of memory", retrieval_out_of_memory, weight=3),
    FaultKind("SQLite corrupted", sqlite_corrupted, ("sqlite",), weight=3),
    FaultKind("SQLite removed", sqlite_removed, ("sqlite",), weight=2),
    FaultKind("snapshot corrupted", snapshot_corrupted, ("sqlite",), weight=2),
    FaultKind(DISK_FULL, disk_full, ("sqlite",)),
    FaultKind(BURST, no_fault),
    FaultKind(ABORTS, no_fault),
)


def _redis(target: Target) -> RedisServer:
    assert target.redis is not None
    return target.redis


def _proxy(target: Target) -> Proxy:
    assert target.proxy is not None
    return target.proxy


@contextlib.contextmanager
def _admin(target: Target, password: str | None = None) -> Iterator[redis.Redis]:
    """Yield a client of Redis's own, past the proxy."""
    client = redis.Redis(port=_redis(target).port, password=password or None, socket_timeout=10)
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def _configured(target: Target, name: str, value: str, before: str) -> Iterator[None]:
    with _admin(target) as client:
        if name == "maxmemory":
            client.config_set("maxmemory-policy", "noeviction")
        client.config_set(name, value)
        client.client_kill_filter(_type="normal", skipme=True)
    password = value if name == "requirepass" else None
    try:
        yield
    finally:
        with _admin(target, password) as client:
            client.config_set(name, before)


def _signal_retrieval(target: Target, number: signal.Signals) -> bool:
    """Send a signal to the retrieval processes; returns whether there was one."""
    was_sent = False
    for process in retrieval_processes(target):
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
            was_sent = True
    return was_sent


def _spoil(path: Path, random: random.Random) -> bool:
    """Overwrite a page of a file; returns whether there was one."""
    with contextlib.suppress(OSError), path.open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(random.randrange(max(1, size // _PAGE_BYTES)) * _PAGE_BYTES)
        return file.write(random.randbytes(min(size, _PAGE_BYTES))) > 0
    return False
