"""Retrieval in a process of its own, kept alive by its owner.

Embedding and search hold the interpreter lock; in a process of their own they cannot hold up the
engine's steps. If the process is killed, hits are missing until it is back, nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import threading
import time

import msgspec

from .config import RetrievalConfig
from .owned_folder import make_folder, sweep_folders
from .retrieval_client import RetrievalClient
from .retrieval_process import Orders
from .shared_block import sweep_blocks, unlink_blocks
from .tier_url import open_tier

logger = logging.getLogger(__name__)
_LOOK_S = 0.1
_MAX_PAUSE_S = 10.0
_STEADY_S = 30.0
_END_S = 5.0
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
            with; its chat template tells where the last user turn is.
        tokenizer_key: Names the tokenizer; answers made with another one are refused.
        for_front_end: The owner takes no updates and no exact hits from here, but forgets what is
            to be forgotten.

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
    ) -> None:
        config = config or RetrievalConfig()
        tier = open_tier(config.url)  # a wrong URL should fail here, not over there
        if tier is not None:
            tier.close()
        sweep_blocks()
        sweep_folders()
        self._folder = make_folder()
        if config.url == "memory://":
            url = f"sqlite://{self._folder}/answers.sqlite"
            config = config.model_copy(update={"url": url})
        self._orders = Orders(
            config=config.model_dump(),
            address=str(self._folder / "socket"),
            block_prefix=self._folder.name,
            owner_pid=os.getpid(),
            tokenizer=tokenizer,
            tokenizer_key=tokenizer_key,
        )
        self._threads = config.embedding_threads
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="reprise-keeper", daemon=True)
        self._keeper.start()
        super().__init__(
            self._orders.address,
            config=config,
            keep_exact=not for_front_end,
            wants_updates=not for_front_end,
            wants_forgotten=for_front_end,
        )

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def close(self) -> None:
        super().close()
        self._ending.set()
        self._keeper.join(timeout=2 * _END_S)
        unlink_blocks(self._orders.block_prefix)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _keep(self) -> None:
        """Start the process, and again whenever it ends, with growing pauses."""
        pause_s = _LOOK_S
        while True:
            self._process = process = self._start()
            began_s = time.monotonic()
            while process.poll() is None:
                if self._ending.wait(_LOOK_S):
                    _end(process)
                    return
            if time.monotonic() - began_s > _STEADY_S:
                pause_s = _LOOK_S
            unlink_blocks(self._orders.block_prefix)
            if self._ending.wait(pause_s):
                return
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            self.restarts += 1
            logger.warning(
                "The retrieval process ended (status %s) and is started again.", process.returncode
            )

    def _start(self) -> subprocess.Popen[bytes]:
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
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            # Not on the command line: a URL may hold a password.
            process.stdin.write(msgspec.json.encode(self._orders))
            process.stdin.close()
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
