"""`reprise serve --kv-tiers`: where KV blocks go that leave the device, in vLLM's configuration.

    cpu=8GiB                      host memory
    cpu=8GiB,disk=/data/kv:100GiB host memory, and files behind it
    lmcache=HOST:PORT             an LMCache server

A block that cannot be loaded is computed again, whatever the tier: vLLM would fail the request.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DISK_TIER = "reprise.engine_ext.scheduling.disk_tier", "DiskTier"
"""Module and class of the tier that vLLM loads for `disk`."""

_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([MGT]iB)")
_EXAMPLES = "cpu=8GiB, cpu=8GiB,disk=PATH:100GiB or lmcache=HOST:PORT"


@dataclass(frozen=True, kw_only=True)
class DiskFolder:
    """Files of KV blocks."""

    path: Path
    max_bytes: int


@dataclass(frozen=True, kw_only=True)
class KvTiers:
    """What `--kv-tiers` asks for: host memory with or without files behind it, or an LMCache."""

    cpu_bytes: int | None = None
    disk: DiskFolder | None = None
    lmcache: tuple[str, int] | None = None
    """Host and port."""


def parse_kv_tiers(text: str) -> KvTiers:
    """Return the tiers that a text names, such as `cpu=8GiB,disk=/data/kv:100GiB`.

    Raises:
        ValueError: It names none, one twice, or some that do not go together.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        name, _, value = (each.strip() for each in part.partition("="))
        if name not in ("cpu", "disk", "lmcache") or not value or name in given:
            raise ValueError(f"--kv-tiers takes {_EXAMPLES}, got {text!r}")
        given[name] = value
    if "lmcache" in given:
        if len(given) > 1:
            raise ValueError("--kv-tiers: an LMCache server has tiers of its own; name it alone")
        return KvTiers(lmcache=_address(given["lmcache"]))
    if "cpu" not in given:
        raise ValueError("--kv-tiers: what goes to disk passes through host memory; add cpu=SIZE")
    disk = _disk(given["disk"]) if "disk" in given else None
    return KvTiers(cpu_bytes=_num_bytes(given["cpu"]), disk=disk)


def transfer_config(tiers: KvTiers, options: Mapping[str, str]) -> dict[str, Any]:
    """Return vLLM's `--kv-transfer-config` for these tiers.

    Args:
        tiers: As parsed.
        options: vLLM's others, by their long names.
    """
    extra: dict[str, Any]
    if tiers.lmcache is not None:
        host, port = tiers.lmcache
        connector = "LMCacheMPConnector"
        extra = {"lmcache.mp.host": f"tcp://{host}", "lmcache.mp.port": port}
    else:
        connector = "OffloadingConnector"
        extra = {"cpu_bytes_to_use": tiers.cpu_bytes}
        if tiers.disk is not None:
            module, name = DISK_TIER
            tier: dict[str, Any] = {
                "type": name,
                "module_path": module,
                "folder": str(tiers.disk.path),
                "max_bytes": tiers.disk.max_bytes,
            }
            # By which the tier finds the model's files.
            for option in ("revision", "download-dir"):
                if option in options:
                    tier[option.replace("-", "_")] = options[option]
            extra |= {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [tier]}
    return {
        "kv_connector": connector,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra,
    }


def _num_bytes(text: str) -> int:
    found = _SIZE.fullmatch(text)
    num_bytes = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if num_bytes <= 0:
        raise ValueError(f"--kv-tiers: a size is a number and {', '.join(_UNITS)}, got {text!r}")
    return num_bytes


def _disk(text: str) -> DiskFolder:
    path, separator, size = text.rpartition(":")
    if not separator or not path:
        raise ValueError(f"--kv-tiers: disk takes PATH:SIZE, got {text!r}")
    return DiskFolder(path=Path(path).expanduser().absolute(), max_bytes=_num_bytes(size))


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"--kv-tiers: lmcache takes HOST:PORT, got {text!r}")
    return host, int(port)
