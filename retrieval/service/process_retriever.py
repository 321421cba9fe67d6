"""Retrieval in a process of its own, kept alive by its owner.

Embedding and search hold the interpreter lock; in a process of their own they cannot hold up the
engine's steps. If the process is killed, hits are missing until it is back, nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.retriever import RetrievalHealth, RetrievalStats
from reprise.retrieval.api.tier_url import check_url, sqlite_path
from reprise.retrieval.host.loop_errors import LoopErrors, keep_going
from reprise.retrieval.host.owned_folder import (
    OwnedFolder,
    folder_name,
    make_folder,
    remove_stale_folders,
)
from reprise.retrieval.host.shared_block import remove_stale_blocks, unlink_blocks
from reprise.retrieval.host.watchdog import MAX_SILENCE_S, Watchdog
from reprise.retrieval.service.retrieval_client import RetrievalClient
from reprise.retrieval.service.wire import LaunchConfig, Response, Status

logger = logging.getLogger(__name__)
_LOOK_S = 0.1
_MAX_PAUSE_S = 10.0
_STEADY_S = 30.0
_END_S = 3.0
# What is meant for the owner alone. OpenMP would pin the process to the owner's cores again, from
# which it is to move away; and whatever the owner computes without, embeddings are half as fast
# again with the matrix tiles of the processor (8.1 instead of 12.6 ms for a question).
_OWNERS = frozenset(
    {"GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND", "ONEDNN_MAX_CPU_ISA"}
)


class ProcessRetriever(RetrievalClient):
    """Starts a retrieval process and is its first client; `address` lets others attach.

    With `memory://` the answers outlive a crash of the process, in a file that goes with this
    object.

    Args:
        config: Settings of the process.
        tokenizer: Name or folder of the tokenizer that prompts given as token ids are decoded
            with; its chat template shows where the last user turn is.
        tokenizer_key: Names the tokenizer; answers made with another one are refused.
        for_front_end: The owner takes no updates from here, but forgets what is to be
            forgotten.
        json_logs: The process logs JSON.

    Raises:
        ValueError: The configured URL names no tier.
    """

    def __init__(
        self,
        config: RetrievalConfig | None = None,
        *,
        tokenizer: str | None = None,
        tokenizer_key: str = "",
        for_front_end: bool = False,
        json_logs: bool = False,
    ) -> None:
        config = config or RetrievalConfig()
        # A wrong URL should fail here, not over there; what is only out of order is tried again.
        if check_url(config.url) == "sqlite" and not sqlite_path(config.url).parent.is_dir():
            folder = sqlite_path(config.url).parent
            raise ValueError(f"cache URL {config.url!r}: there is no folder {folder}")
        remove_stale_blocks()
        remove_stale_folders()
        self._folder = _folder()
        if not config.has_tier:
            url = f"sqlite://{self._folder.path}/answers.sqlite"
            # It holds what memory holds, in less room; the temporary folder may be memory too.
            tier_bytes = max(1 << 20, min(config.tier_bytes, config.memory_bytes))
            config = config.model_copy(update={"url": url, "tier_bytes": tier_bytes})
        self._launch = LaunchConfig(
            config=config.model_dump(),
            address=str(self._folder.path / "socket"),
            block_prefix=self._folder.path.name,
            owner_pid=os.getpid(),
            tokenizer=tokenizer,
            tokenizer_key=tokenizer_key,
            json_logs=json_logs,
        )
        self._threads = config.embedding_threads
        self.restarts = 0
        """Times that the process ended, or was killed, and was started again."""
        self.hangs = 0
        """Times that it was killed because it did not answer."""
        self._watchdog = Watchdog()
        self._process: subprocess.Popen[bytes] | None = None
        self._pause_s, self._is_first = _LOOK_S, True
        self._lost: tuple[int, float] | None = None
        """Id of a process whose end the log has told of, and when that was; until another one is
        ready."""
        self._ending = threading.Event()
        self._keeper_errors = LoopErrors("Starting the retrieval process")
        self._keeper = threading.Thread(
            target=keep_going,
            args=(self._keep, self._keeper_errors),
            kwargs={"pause": self._ending.wait},
            name="reprise-keeper",
            daemon=True,
        )
        self._keeper.start()
        super().__init__(
            self._launch.address,
            config=config,
            wants_updates=not for_front_end,
            wants_forgotten=for_front_end,
        )

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def stats(self) -> RetrievalStats:
        stats = super().stats()
        errors = stats.errors + self._keeper_errors.num
        return replace(stats, restarts=self.restarts, hangs=self.hangs, errors=errors)

    def health(self) -> RetrievalHealth:
        health = super().health()
        if health.state != "starting" or not self.restarts:
            return health
        detail = f"the retrieval process was started again, {self.restarts} times so far"
        return replace(health, state="degraded", detail=detail)

    def begin_to_close(self) -> None:
        """Have the process end, and wait for nothing; `close` is still to be called."""
        if not self._ending.is_set():
            super().close()
            self._ending.set()

    def close(self) -> None:
        self.begin_to_close()
        self._keeper.join(timeout=2 * _END_S)
        if self._process is not None:  # the keeper was in the middle of an error
            _end(self._process)
        unlink_blocks(self._launch.block_prefix)
        self._folder.remove()

    def _heard(self, pid: int, response: Response) -> None:
        is_loaded = isinstance(response, Status) and response.health.state != "starting"
        self._watchdog.heard(pid, is_loaded=is_loaded)
        # What the lost one has said may be read only now.
        if is_loaded and (lost := self._lost) is not None and lost[0] != pid:
            self._lost = None
            if self._was_ready:
                took_s = time.monotonic() - lost[1]
                logger.warning("The retrieval process is ready again, after %.1f s.", took_s)

    def _keep(self) -> None:
        """Start the process, and again whenever it ends or hangs, with growing pauses."""
        while not self._ending.is_set():
            if self._process is None:
                self._process = self._start()
            process = self._process
            began_s = time.monotonic()
            hung = self._watch(process)
            if self._ending.is_set():
                _end(process)
                return
            self._process = None
            lasted = time.monotonic() - began_s > _STEADY_S
            if lasted:
                self._pause_s, self._is_first = _LOOK_S, True
            unlink_blocks(self._launch.block_prefix)
            # One line for a row of starts that come to nothing; the process says why.
            if lasted or self.restarts == 0:
                _log_end(process.returncode, hung)
                self._lost = (process.pid, time.monotonic())
            if self._ending.wait(self._pause_s):
                return
            self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)
            self.restarts += 1

    def _watch(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the process ends, is killed for hanging (True), or this object closes."""
        while process.poll() is None and not self._ending.wait(_LOOK_S):
            if self._watchdog.hangs():
                self.hangs += 1
                process.kill()  # whatever it does, even if it is stopped
                process.wait(_END_S)
                return True
        return False

    def _start(self) -> subprocess.Popen[bytes]:
        began_s = time.monotonic()
        # Whoever cleans the temporary folder up may have taken it away.
        self._folder.claim()
        environment = {
            **{name: value for name, value in os.environ.items() if name not in _OWNERS},
            "OMP_NUM_THREADS": str(self._threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.retrieval_process"],
            stdin=subprocess.PIPE,
            env=environment,
        )
        self._watchdog.watch(process.pid)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            # Not on the command line: a URL may hold a password.
            launch = msgspec.structs.replace(self._launch, is_first=self._is_first, began_s=began_s)
            process.stdin.write(msgspec.json.encode(launch))
            process.stdin.close()
        self._is_first = False
        return process


def _folder() -> OwnedFolder:
    """Return a folder for the socket; where none can be made now, one that is made later."""
    try:
        return make_folder()
    except OSError as error:
        logger.warning("Near answers are missing until there is room: %s", error)
        return OwnedFolder(Path("/tmp", folder_name()))


def _log_end(status: int | None, hung: bool) -> None:
    if hung:
        logger.warning(
            "The retrieval process did not answer for %.0f s: it was killed and is started again.",
            MAX_SILENCE_S,
        )
    else:
        logger.warning("The retrieval process ended (status %s) and is started again.", status)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
