"""What a figure was measured on: the processor, the instruction set that it computes in, cores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
# The widest first; the second is a flag that Linux reports.
_INSTRUCTION_SETS = (
    ("AMX", "amx_tile"),
    ("AVX-512 with bfloat16", "avx512_bf16"),
    ("AVX-512", "avx512f"),
    ("AVX2", "avx2"),
)
_LIMIT = "ONEDNN_MAX_CPU_ISA"


def describe_machine(
    cpu_info: str | None = None, environment: Mapping[str, str] = os.environ
) -> str:
    """One line for a figure's output or its row in a CSV, such as
    `AMD EPYC; AVX-512 with bfloat16; 2 cores`.

    Args:
        cpu_info: the text of /proc/cpuinfo; by default this machine's.
        environment: may hold oneDNN to a smaller instruction set, which is then told.
    """
    if cpu_info is None:
        cpu_info = _CPU_INFO.read_text() if _CPU_INFO.is_file() else ""
    parts = [_field(cpu_info, "model name") or "unknown processor"]
    flags = set(_field(cpu_info, "flags").split())
    parts += [name for name, flag in _INSTRUCTION_SETS if flag in flags][:1]
    if limit := environment.get(_LIMIT):
        parts.append(f"oneDNN held to {limit}")
    parts.append(f"{len(os.sched_getaffinity(0))} cores")
    return "; ".join(parts)


def _field(cpu_info: str, name: str) -> str:
    """The first value of a field; empty if there is none."""
    for line in cpu_info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
