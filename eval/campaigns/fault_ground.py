"""What a fault campaign stands on: two servers of ours, and what is behind them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from reprise.eval.benchmarks.serving.load import SPECULATIVE, Server, stop_all
from reprise.eval.campaigns.campaign_requests import TENANTS
from reprise.eval.campaigns.fault_kinds import SQLITE_FILE, Target, small_file_system
from reprise.eval.live.redis_server import Proxy, RedisServer

# A burst of long answers runs out of KV blocks.
SERVER_OPTIONS = (
    *("--max-model-len", "512", "--max-num-seqs", "16"),
    *("--block-size", "32", "--num-gpu-blocks-override", "40", "--api-key", *TENANTS),
)
_DISK_MIB = 24
_ENDS_WITHIN_S = 30.0


class Ground:
    """Servers with Reprise: `redis`, behind a proxy, and `sqlite`, on a small file system.

    Args:
        model: name or folder.
        embedding_model: as the setting of that name.
        folder: an empty one, for all that they write.
        can_fill_disk: whether `folder / "disk"` is a file system of its own.
    """

    def __init__(
        self, model: str, embedding_model: str, folder: Path, *, can_fill_disk: bool
    ) -> None:
        self.can_fill_disk = can_fill_disk
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        disk = folder / "disk"
        self._redis = RedisServer().start()
        self._proxy = Proxy(self._redis.port)
        urls = {
            "redis": f"redis://127.0.0.1:{self._proxy.port}/0",
            "sqlite": f"sqlite://{disk}/{SQLITE_FILE}",
        }
        self.servers = {
            name: Server(
                model,
                SPECULATIVE["reprise"],
                dtype="float32",
                options=SERVER_OPTIONS,
                environment={
                    "REPRISE_RETRIEVAL__URL": url,
                    "REPRISE_RETRIEVAL__EMBEDDING_MODEL": embedding_model,
                    # Drafts, and many, whatever they cost on this machine: they are on trial.
                    "REPRISE_DRAFTS__VERIFY_COST": "0.02",
                    "TMPDIR": str(self._temporary),
                },
            )
            for name, url in urls.items()
        }
        self.targets = {
            "redis": Target("redis", self.servers["redis"].pid, disk, self._redis, self._proxy),
            "sqlite": Target("sqlite", self.servers["sqlite"].pid, disk, None, None),
        }

    def wait(self) -> None:
        """Wait until both answer.

        Raises:
            RuntimeError: one did not start; with the end of its log.
        """
        for server in self.servers.values():
            server.wait()

    def stop(self) -> list[str]:
        """Tell the servers to stop, and name what they leave behind."""
        processes = []
        for server in self.servers.values():
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(server.pid)
                processes += [root, *root.children(recursive=True)]
        for server in self.servers.values():
            server.terminate()
        found = leftovers(processes, self._temporary)
        for server in self.servers.values():
            server.stop()
        return found

    def close(self) -> None:
        """End all that is still there."""
        stop_all(self.servers.values())
        self._proxy.close()
        self._redis.close()


@contextlib.contextmanager
def standing(model: str, embedding_model: str) -> Iterator[Ground]:
    """Start the servers, and end them and all that is behind them afterwards."""
    with tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "disk").mkdir()
        with small_file_system(folder / "disk", mib=_DISK_MIB) as is_mounted:
            ground = Ground(model, embedding_model, folder, can_fill_disk=is_mounted)
            try:
                ground.wait()
                yield ground
            finally:
                ground.close()


def leftovers(
    processes: Sequence[psutil.Process], folder: Path, *, ends_within_s: float = _ENDS_WITHIN_S
) -> list[str]:
    """Name what servers that were told to stop leave behind.

    Args:
        processes: all that they were.
        folder: their TMPDIR.
        ends_within_s: how long the processes may take.
    """
    _, alive = psutil.wait_procs(processes, timeout=ends_within_s)
    found = [f"process {each.pid} {_command(each)}" for each in alive]
    found += [f"file {path}" for path in folder.glob("*reprise*")]
    pids = {str(process.pid) for process in processes}
    shared = Path("/dev/shm")
    if shared.is_dir():
        found += [
            f"shared memory {path.name}"
            for path in shared.glob("reprise*")
            if pids & set(path.name.replace("_", "-").split("-"))
        ]
    return found


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:120]
    return ""
