"""Checks a model's folder, and its tokenizer's, by what lies there: nothing is loaded."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from reprise.engine_ext.checks.machine_checks import Finding, looks_like_path

_CONFIGS = ("config.json", "params.json")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json"),
    *("vocab.json", "vocab.txt", "spiece.model", "*.tiktoken"),
)
# Formats that read the files above; others have files of their own, or none.
_PLAIN_FORMATS = ("auto", "hf", "safetensors", "pt", "mistral")
_POINTER = b"version https://git-lfs"
_MAX_POINTER_BYTES = 1024
_LOOK_UP_WITHIN_S = 1.0


def check_model(model: str, options: Mapping[str, str]) -> Iterator[Finding]:
    """Check that there is a model of this name, as far as this machine can tell."""
    problem = _unfound(model, options)
    if problem is not None:
        yield Finding("model", problem)
        return
    folder = Path(model)
    if not folder.is_dir():
        if not os.path.exists(model):
            yield from _check_hub(model, options)
        return
    config = next((folder / name for name in _CONFIGS if (folder / name).exists()), None)
    has_gguf = any(folder.glob("*.gguf"))
    if config is None and not has_gguf and "hf-config-path" not in options:
        yield Finding("model", f"{model} has no {' or '.join(_CONFIGS)}: it is no model's folder")
        return
    if config is not None and (reason := _bad_json(config)) is not None:
        yield Finding("model", f"{config} {reason}")
        return
    if options.get("load-format", "auto") in _PLAIN_FORMATS:
        yield from _check_weights(folder)


def check_tokenizer(model: str, options: Mapping[str, str]) -> Iterator[Finding]:
    """Check that there is a tokenizer: of this name, or in the model's folder."""
    if "skip-tokenizer-init" in options:
        return
    named = options.get("tokenizer")
    if named is not None and (problem := _unfound(named, options)) is not None:
        yield Finding("tokenizer", problem)
        return
    folder = Path(named or model)
    if not folder.is_dir() or any(folder.glob("*.gguf")):
        return
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        yield Finding("tokenizer", f"there is none in {folder}", "Name one by --tokenizer.")
        return
    fast = folder / "tokenizer.json"
    if fast.exists() and (reason := _bad_json(fast)) is not None:
        yield Finding("tokenizer", f"{fast} {reason}")


def _check_weights(folder: Path) -> Iterator[Finding]:
    files = [file for pattern in _WEIGHTS for file in folder.glob(pattern)]
    if not files:
        yield Finding("model", f"{folder} holds no weights ({', '.join(_WEIGHTS)})")
        return
    for file in files:
        if _is_pointer(file):
            yield Finding(
                "model", f"{file} is a pointer of Git LFS, not the file itself", "git lfs pull."
            )
            return
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        named = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        yield Finding("model", f"{index} is damaged")
        return
    missing = sorted(name for name in named if not (folder / str(name)).exists())
    if missing:
        yield Finding(
            "model", f"{folder} lacks {len(missing)} of {len(named)} files of weights: {missing[0]}"
        )


def _unfound(name: str, options: Mapping[str, str]) -> str | None:
    """Return why neither this machine nor a hub can have what is named so; None: they may."""
    if "://" in name or os.path.exists(name):
        return None
    if looks_like_path(name):
        return f"there is no folder {name}"
    if name.count("/") > 1 and not name.endswith(".gguf"):
        return f"{name} is neither a folder here nor a name on the hub (owner/name)"
    if _uses_modelscope():
        return None
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        problem = _not_cached(name, options)
        return None if problem is None else f"{problem}, and HF_HUB_OFFLINE is set"
    return None


def _check_hub(name: str, options: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the hub can be found, where the model has to be fetched from it.

    A network that is down may come up while vLLM tries, so that ends no start; a name server that
    does not know the hub does.
    """
    if "://" in name or options.get("config-format", "auto") not in _PLAIN_FORMATS:
        return
    if ":" in name or name.endswith(".gguf"):  # what of those is cached has no config.json
        return
    if "hf-config-path" in options or getproxies():  # a proxy has a name server of its own
        return
    if _uses_modelscope():
        return
    if _not_cached(name, options) is None:
        return
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    errors: list[OSError] = []

    def look_up() -> None:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            errors.append(error)

    # In a thread: a name server may take longer to say nothing than anybody wants to wait.
    asking = threading.Thread(target=look_up, daemon=True)
    asking.start()
    asking.join(_LOOK_UP_WITHIN_S)
    if not errors:
        return
    (error,) = errors
    yield Finding(
        "model",
        f"{name} is neither a folder here nor in the hub's cache, and {host} cannot be found: "
        f"{error.strerror}",
        is_fatal=error.errno == socket.EAI_NONAME,
    )


def _uses_modelscope() -> bool:
    """Return whether models come from another hub, of which nothing is known here."""
    return os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true")


def _not_cached(name: str, options: Mapping[str, str]) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    repository = name.partition(":")[0]
    if repository.endswith(".gguf"):
        repository = "/".join(repository.split("/")[:2])
    try:
        for file in (*_CONFIGS, "tokenizer_config.json"):
            # In the hub's own cache, whatever --download-dir says: there vLLM looks when offline.
            found = try_to_load_from_cache(repository, file, revision=options.get("revision"))
            if isinstance(found, str):
                return None
    except ValueError as error:
        return f"{name}: {str(error).splitlines()[0]}"
    return f"{name} is not in the hub's cache"


def _bad_json(file: Path) -> str | None:
    try:
        json.loads(file.read_bytes())
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:
        if _is_pointer(file):
            return "is a pointer of Git LFS, not the file itself (git lfs pull)"
        return f"is no JSON: {error}"
    return None


def _is_pointer(file: Path) -> bool:
    try:
        if file.stat().st_size > _MAX_POINTER_BYTES:
            return False
        return file.read_bytes().startswith(_POINTER)
    except OSError:
        return False
