"""Checks, before vLLM loads anything, what would end or hamper a server later."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reprise.engine_ext.checks.machine_checks import (
    Finding,
    check_disk,
    check_embedding_model,
    check_front_end,
    check_redis,
    check_shared_memory,
    check_socket,
    check_store,
    check_vllm_sockets,
)
from reprise.engine_ext.checks.model_checks import check_model, check_tokenizer
from reprise.engine_ext.core.config import RepriseConfig, config_with
from reprise.retrieval.host.socket_address import MAX_ADDRESS_BYTES

_DEFAULT_PORT = 8000
# As far as they are looked at here.
_SWITCHES = frozenset({"headless", "skip-tokenizer-init", "grpc", "enable-elastic-ep"})
# With engines on other machines vLLM may do without sockets that have a path.
_SEVERAL_MACHINES = frozenset(
    {"headless", "data-parallel-size-local", "data-parallel-backend", "enable-elastic-ep"}
)


def check_start(
    model: str | None, arguments: Sequence[str], *, with_port: bool = True
) -> list[Finding]:
    """Return what stands against a start, and what will be missing after it; takes under 3 s.

    Args:
        model: What `vllm serve` is to serve; None: not known here.
        arguments: vLLM's options, as on its command line.
        with_port: Whether the server's port must still be free.
    """
    try:
        options = read_options(arguments)
        config = config_with(_json_option(options, "additional-config"))
    except ValueError as error:
        return [Finding("settings", str(error).removeprefix("Reprise configuration: "))]
    findings = [*check_front_end(), *check_socket(), *_vllm_sockets(options)]
    findings += check_store(config)
    findings += check_embedding_model(config)
    if model is not None:
        findings += check_model(model, options)
        findings += check_tokenizer(model, options)
    if with_port:
        findings += check_port(options)
    findings += check_disk(config)
    findings += [each._replace(is_fatal=False) for each in _may_come_later(config)]
    return [each for each in findings if each.problem is not None]


def _vllm_sockets(options: dict[str, str]) -> Iterator[Finding]:
    """Check what ends a start where all of an engine is on this machine."""
    is_fatal = not _SEVERAL_MACHINES & options.keys()
    yield from (each._replace(is_fatal=is_fatal) for each in check_vllm_sockets())


def _may_come_later(config: RepriseConfig) -> Iterator[Finding]:
    """Check what an engine can do without."""
    yield from check_shared_memory()
    yield from check_redis(config)


def refusal_of(findings: Sequence[Finding]) -> str | None:
    """Return the one line that ends a start; None: nothing stands against it."""
    fatal = [_line(each) for each in findings if each.is_fatal]
    return "; ".join(fatal) or None


def warnings_of(findings: Sequence[Finding]) -> list[str]:
    """Return what a server will be without, a line each."""
    return [_line(each) for each in findings if not each.is_fatal]


def model_of(arguments: Sequence[str]) -> str | None:
    """Return the model that the arguments of `vllm serve` name; None: it cannot be told."""
    words = list(arguments)
    if words[:1] == ["serve"]:
        words = words[1:]
    if words and not words[0].startswith("-"):
        return words[0]
    with contextlib.suppress(ValueError):
        return read_options(words).get("model")
    return None


def read_options(arguments: Sequence[str]) -> dict[str, str]:
    """Return vLLM's options by their long names, as far as they stand alone; the last of each.

    Those of the file that `--config` names are among them; the command line wins.

    Raises:
        ValueError: That file cannot be read.
    """
    given: dict[str, str] = {}
    words = list(arguments)
    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, separator, value = word[2:].partition("=")
        name = name.replace("_", "-")
        following = words[place + 1] if place + 1 < len(words) else ""
        if separator:
            given[name] = value
        elif name in _SWITCHES or following.startswith("--"):
            given[name] = "true"
        else:
            given[name] = following
    if (file := given.get("config")) is not None:
        given = _options_of_file(file) | given
    return given


def check_port(options: dict[str, str]) -> Iterator[Finding]:
    """Check that the server's address is free."""
    if (path := options.get("uds")) is not None:
        if (num_bytes := len(os.fsencode(path))) > MAX_ADDRESS_BYTES:
            problem = f"{path} has {num_bytes} bytes, and at most {MAX_ADDRESS_BYTES} fit"
            yield Finding("--uds", problem, "Name a shorter path.")
        return
    if "headless" in options:
        return
    host, port = options.get("host") or "", options.get("port", str(_DEFAULT_PORT))
    if not port.isdecimal() or int(port) > 65_535:
        yield Finding("port", f"--port must be a number up to 65535, got {port!r}")
        return
    shown = f"{host or '0.0.0.0'}:{port}"
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        reason = "is taken by another process" if is_taken else f"cannot be used: {error.strerror}"
        yield Finding("port", f"{shown} {reason}", "Name another --port or --host.")


def _line(finding: Finding) -> str:
    return f"{finding.name}: {finding.problem}" + (
        f" ({finding.detail.rstrip('.')})" if finding.detail else ""
    )


def _json_option(options: dict[str, str], name: str) -> Any:
    text = options.get(name)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"--{name} must be JSON: {error}") from None


def _options_of_file(name: str) -> dict[str, str]:
    """Return the options in a file for vLLM's `--config`."""
    import yaml

    try:
        content = yaml.safe_load(Path(os.path.expanduser(name)).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"--config {name} cannot be read: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--config {name} must hold a table of options")
    plain = {
        key: json.dumps(value) if isinstance(value, dict | list) else str(value)
        for key, value in content.items()
    }
    return {str(key).replace("_", "-"): value for key, value in plain.items()}
