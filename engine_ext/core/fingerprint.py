"""A fingerprint of what determines an engine's outputs, which two engines share only if one would
say what the other has said.

It covers: the model's configuration as vLLM uses it; name, shape, data type and sampled bytes of
every tensor; the tokenizer's files, chat template and code beside the weights; data type,
quantization, the KV cache's type and block size; attention, kernels and compilation as configured;
parallel sizes; the device's kind and, on a CPU, its instruction set; versions of vLLM and torch;
vLLM's environment variables, but for those that only say where things are.

It cannot cover what a step's batch, the number of threads or a driver do to rounding, nor a change
of a few values that no sampled block meets.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import vllm
from vllm.platforms import current_platform

from reprise.engine_ext.core.weights_digest import (
    cached_weights_digest,
    digest_files,
    digest_weights,
    model_files,
    states_of,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Part of every fingerprint: those of another layout never match.
_LAYOUT = "reprise-fingerprint-1"

CONFIG_FIELDS: Mapping[str, tuple[str, ...]] = {
    "model_config": (
        "dtype", "quantization", "quantization_config", "tokenizer_mode", "max_model_len",
        "disable_sliding_window", "disable_cascade_attn", "enforce_eager", "model_impl",
        "config_format", "runner_type", "convert_type", "logits_processors",
        "model_class_overrides", "skip_tokenizer_init", "code_revision",
    ),
    "load_config": ("load_format", "model_loader_extra_config", "ignore_patterns"),
    "cache_config": (
        "block_size", "cache_dtype", "enable_prefix_caching", "sliding_window",
        "kv_cache_dtype_skip_layers", "mamba_cache_dtype", "mamba_ssm_cache_dtype",
        "kv_sharing_fast_prefill",
    ),
    "parallel_config": (
        "tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size",
        "prefill_context_parallel_size", "data_parallel_size", "enable_expert_parallel",
        "enable_eplb", "all2all_backend", "disable_custom_all_reduce", "enable_dbo",
    ),
    "attention_config": (
        "backend", "backend_per_kind", "flash_attn_version", "use_trtllm_attention",
        "disable_flashinfer_q_quantization", "mla_prefill_backend",
        "use_prefill_query_quantization", "indexer_kv_dtype", "indexer_sparse_logits",
    ),
    "kernel_config": ("moe_backend", "linear_backend", "linear_backend_per_quant"),
    "compilation_config": (
        "mode", "level", "backend", "custom_ops", "cudagraph_mode", "inductor_compile_config",
        "pass_config",
    ),
    "lora_config": ("max_lora_rank", "lora_dtype", "fully_sharded_loras"),
}  # fmt: skip
"""What of vLLM's configuration is part of a fingerprint; what a version does not have is None."""

_PATHS_IN_CONFIG = ("_name_or_path", "transformers_version", "name_or_path")
_UNREAD_FORMATS = frozenset({"dummy", "tensorizer", "runai_streamer", "runai_streamer_sharded"})
# Of vLLM's variables, those that say where things are, who runs here and what is printed.
_UNKEYED_VARIABLES = (
    "API_KEY", "CACHE_DIR", "CACHE_ROOT", "CONFIG_ROOT", "DEBUG", "DO_NOT_TRACK", "FETCH", "HOST",
    "KEEP_ALIVE", "KVCACHE_SPACE", "LOG", "MEDIA", "MULTIPROC", "PATH", "PLUGINS", "PORT", "RANK",
    "SERVER", "THREADS_BIND", "TIMEOUT", "USAGE", "VLLM_DP_", "VLLM_RAY_", "_DIR", "_IP",
)  # fmt: skip
_OTHER_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA",
    "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip


class FingerprintError(Exception):
    """There is no fingerprint, for this reason."""


def fingerprint_of(
    vllm_config: "VllmConfig", *, loaded_since_s: float, cache_folder: Path | None
) -> str:
    """Return 32 hexadecimal digits; reads up to 256 MiB of the weights.

    Args:
        vllm_config: Of an engine that has loaded its weights.
        loaded_since_s: The time of day before it began to; files that changed since are refused.
        cache_folder: Where the weights' digest is remembered; None: nowhere.

    Raises:
        FingerprintError: Something that determines the output cannot be read.
    """
    model = vllm_config.model_config
    if (load_format := _plain(vllm_config.load_config.load_format)) in _UNREAD_FORMATS:
        raise FingerprintError(f"the load format {load_format!r} reads no files")
    if getattr(model, "model_weights", ""):
        raise FingerprintError("the weights lie in an object store")
    try:
        downloads = vllm_config.load_config.download_dir
        folder = folder_of_model(model.model, model.revision, downloads)
        weights, others = model_files(folder)
        if not weights:
            raise FingerprintError(f"there are no weights in {folder}")
        tokenizer = folder_of_model(model.tokenizer, model.tokenizer_revision, downloads)
        parts = {
            "layout": _LAYOUT,
            "settings": settings_of(vllm_config),
            "model": _plain(model.hf_config.to_dict()),
            "software": _software(),
            "device": _device(),
            "environment": environment_of(os.environ),
            "files": digest_files(others),
            "tokenizer": digest_files(model_files(tokenizer)[1]),
            "weights": cached_weights_digest(weights, cache_folder),
        }
        if late := _changed_since([*weights, *others], loaded_since_s):
            raise FingerprintError(f"{late} has changed since the engine began to load")
    except (OSError, ValueError) as error:
        raise FingerprintError(f"the model's files cannot be read: {error}") from error
    return _digest(parts)


def adapter_fingerprint(folder: Path, *, loaded_since_s: float) -> str:
    """Return 32 hexadecimal digits for an adapter, of its files alone.

    Raises:
        FingerprintError: They cannot be read, or changed after the adapter was loaded.
    """
    try:
        weights, others = model_files(folder)
        if not weights:
            raise FingerprintError(f"there are no weights in {folder}")
        parts = {"weights": digest_weights(weights), "files": digest_files(others)}
        if late := _changed_since([*weights, *others], loaded_since_s):
            raise FingerprintError(f"{late} has changed since the adapter was loaded")
    except (OSError, ValueError) as error:
        raise FingerprintError(f"the adapter's files cannot be read: {error}") from error
    return _digest(parts)


def settings_of(vllm_config: Any) -> dict[str, dict[str, Any]]:
    """Return the fields of `CONFIG_FIELDS` as plain values."""
    found = {}
    for section, names in CONFIG_FIELDS.items():
        config = getattr(vllm_config, section, None)
        found[section] = {name: _plain(getattr(config, name, None)) for name in names}
    return found


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those environment variables that may change outputs."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if name in _OTHER_VARIABLES
        or (name.startswith("VLLM_") and not any(part in name for part in _UNKEYED_VARIABLES))
    }


def _software() -> dict[str, str | None]:
    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: of(name) for name in ("transformers", "tokenizers", "flashinfer-python")},
    }


def _device() -> dict[str, Any]:
    """Return the kind of the device: its name, or a CPU's instruction set."""
    if not current_platform.is_cpu():
        capability = current_platform.get_device_capability()
        return {"name": current_platform.get_device_name(), "capability": str(capability)}
    return {"machine": os.uname().machine, "flags": _cpu_flags()}


def _cpu_flags() -> list[str]:
    """Return the extensions that matrix products and attention choose by, or the whole model name
    where they cannot be told."""
    chosen = ("avx", "amx", "fma", "f16c", "asimd", "sve", "bf16", "i8mm", "sme", "rvv", "vsx")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return [torch.backends.cpu.get_cpu_capability()]
    lines = [line for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    flags = set(lines[0].partition(":")[2].split()) if lines else set()
    found = sorted(flag for flag in flags if any(part in flag for part in chosen))
    return [torch.backends.cpu.get_cpu_capability(), *found]


def folder_of_model(name: str, revision: str | None, download_dir: str | None) -> Path:
    """Return where a model's files lie on this machine: its folder, or the hub's snapshot.

    Raises:
        FingerprintError: Nowhere.
    """
    if Path(name).exists():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        found = try_to_load_from_cache(name, file, cache_dir=download_dir, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    raise FingerprintError(f"the files of {name} were not found")


def _changed_since(files: list[Path], since_s: float) -> str | None:
    """Return the name of a file that changed later than that; None: none did.

    What the hub's cache holds is named after its contents and never changes: it may just have been
    downloaded.
    """
    own = [path for path in files if path.resolve().parent.name != "blobs"]
    late = (state.name for state in states_of(own) if state.changed_ns > since_s * 1e9)
    return next(late, None)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, the same in every process."""
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {
            str(key): _plain(item) for key, item in value.items() if key not in _PATHS_IN_CONFIG
        }
    if isinstance(value, set | frozenset):
        return sorted(str(_plain(item)) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    # Its text might hold an address, another one at each start.
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _digest(parts: Mapping[str, Any]) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
