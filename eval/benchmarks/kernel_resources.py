"""What the kernels take of a GPU, without one: compiled ahead of time, registers and spills read.

Instructions and barriers are counted as they stand, however often a loop executes them.

Run `python -m reprise.eval.benchmarks.kernel_resources` for a table, without Triton's interpreter.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reprise.eval.report.command_line import run_command
from reprise.kernels.draft import triton_counts
from reprise.kernels.draft import triton_kernels as draft_kernels
from reprise.kernels.verify import triton_coupled, triton_kernels, triton_restrict

_POINTERS = {
    "logits_ptr": "*bf16",
    "seeds_ptr": "*i64",
    "offsets_ptr": "*i64",
    "drafts_ptr": "*i64",
    "totals_ptr": "*i64",
    "idx_mapping_ptr": "*i64",
    "positions_ptr": "*i64",
    "tokens_ptr": "*i64",
    "best_token_ptr": "*i32",
}
_FLOAT_POINTERS = (
    "tile_max", "tile_mass", "least", "temperature", "top_p", "min_p", "best", "chances", "hit_",
    "hits_ptr",
)  # fmt: skip


class Resources(NamedTuple):
    """One compiled kernel."""

    kernel: str
    variant: str
    num_warps: int
    instructions: int
    barriers: int
    """Of the instructions, those at which all warps of a program wait for one another."""
    registers: int
    """Registers per thread."""
    spilled_bytes: int
    """Local memory per thread, stack included."""
    shared_bytes: int
    """Shared memory per program."""


Variant = tuple[Any, str, int, dict[str, Any]]
"""Kernel, name of the variant, warps and compile-time constants."""


def _variants() -> list[Variant]:
    """What is launched."""
    tile = {"TILE": triton_kernels.TILE}
    padded = tile | {"PADDED_TILES": 64}
    greedy = {"SAMPLES": False, "RESTRICTED": False, "temperature_ptr": None, "least_ptr": None}
    greedy |= {"seeds_ptr": None, "offsets_ptr": None, "min_p_ptr": None}
    plain = {"SAMPLES": True, "RESTRICTED": False, "least_ptr": None, "min_p_ptr": None}
    bf16 = padded | {"SHIFT": 16}
    draft = {"WIDTH": 16, "BLOCK": draft_kernels.BLOCK}
    fold = {"CELLS": 1800, "PADDED": 2048, "PADDED_ROWS": 256}
    stats, sample = triton_kernels.tile_stats_kernel, triton_kernels.sample_kernel
    restrict = triton_restrict.restrict_kernel
    return [
        (stats, "greedy", 4, tile | greedy | {"TILES_PER_PROGRAM": 2}),
        (stats, "temperature", 4, tile | {"SAMPLES": True, "TILES_PER_PROGRAM": 2}),
        (stats, "temperature, few rows", 4, tile | {"SAMPLES": True, "TILES_PER_PROGRAM": 1}),
        (restrict, "top-k", 8, bf16 | {"top_p_ptr": None, "min_p_ptr": None}),
        (restrict, "top-p", 8, bf16 | {"top_k_ptr": None, "min_p_ptr": None}),
        (restrict, "all", 8, bf16),
        (restrict, "all, float32", 8, padded | {"SHIFT": 0, "logits_ptr": "*fp32"}),
        (sample, "greedy", 8, padded | greedy),
        (sample, "temperature", 8, padded | plain),
        (sample, "restricted", 8, padded | {"SAMPLES": True, "RESTRICTED": True}),
        (triton_kernels.walk_kernel, "16 drafts", 1, {"WIDTH": 32}),
        (draft_kernels.draft_kernel, "16 drafts", draft_kernels.NUM_WARPS, draft),
        (triton_counts.count_kernel, "16 drafts", 1, {"WIDTH": 16}),
        (draft_kernels.fold_kernel, "", 4, fold),
        *_coupled_variants(),
    ]


def _coupled_variants() -> list[Variant]:
    """See `_variants`."""
    tile = {"TILE": triton_coupled.TILE}
    padded = tile | {"PADDED_TILES": 64}
    bf16 = padded | {"SHIFT": 16}
    no_top_p: dict[str, Any] = {"top_p_ptr": None, "tile_mass_ptr": None}
    noise = padded | {"TILES_PER_PROGRAM": 2, "IS_SCALED": False}
    free = {"least_ptr": None, "last_tie_ptr": None}
    scan, threshold = triton_coupled.scan_kernel, triton_coupled.threshold_kernel
    return [
        (scan, "greedy or temperature", 4, tile | no_top_p | {"TILES_PER_PROGRAM": 2}),
        (scan, "top-p", 4, tile | {"TILES_PER_PROGRAM": 2}),
        (threshold, "top-k", 8, bf16 | no_top_p | {"min_p_ptr": None}),
        (threshold, "top-p", 8, bf16 | {"top_k_ptr": None, "min_p_ptr": None}),
        (threshold, "all", 8, bf16),
        (threshold, "all, float32", 8, padded | {"SHIFT": 0, "logits_ptr": "*fp32"}),
        (triton_coupled.noise_kernel, "temperature", 8, noise | free),
        (triton_coupled.noise_kernel, "restricted", 8, noise),
        (
            triton_coupled.noise_kernel,
            "processed logits",
            8,
            noise | free | {"IS_SCALED": True, "logits_ptr": "*fp32"},
        ),
        (triton_coupled.choose_kernel, "16 drafts", 4, {"WIDTH": 32, "PADDED_TILES": 64}),
    ]


def measure_resources(capability: int = 90) -> list[Resources]:
    """Compile every kernel for a compute capability (90: Hopper) and read what it takes."""
    return [_measure(variant, capability) for variant in _variants()]


def _measure(variant: Variant, capability: int) -> Resources:
    kernel, name, num_warps, constants = variant
    kinds = {name: _kind(name, constants) for name in kernel.arg_names}
    fixed = {name: constants[name] for name, kind in kinds.items() if kind == "constexpr"}
    # As at run time if the vocabulary is a multiple of 16: only then do loads become vectors.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(kinds.items())
        if kind.startswith("*") or name in ("row_stride", "vocab")
    }
    source = ASTSource(
        kernel,
        signature=kinds,
        constexprs={(kernel.arg_names.index(name),): value for name, value in fixed.items()},
        attrs=aligned,
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "enable_fp_fusion": True},
    )
    return Resources(
        kernel.__name__,
        name,
        num_warps,
        *_count_instructions(compiled.asm["sass"]),
        *_read_cubin(compiled.asm["cubin"]),
        compiled.metadata.shared,
    )


def _count_instructions(sass: str) -> tuple[int, int]:
    """Instructions, without the padding behind the last, and barriers among them."""
    return sass.count(";") - sass.count("NOP;"), sass.count("BAR.")


def _kind(name: str, constants: dict[str, Any]) -> str:
    """Triton's name for an argument's type."""
    if name in constants:
        given = constants[name]
        return given if isinstance(given, str) else "constexpr"
    if name.endswith("_ptr"):
        return _POINTERS.get(name, "*fp32" if name.startswith(_FLOAT_POINTERS) else "*i32")
    return "i32"


def _read_cubin(cubin: bytes) -> tuple[int, int]:
    """Registers and local bytes (stack included) of the one kernel in a compiled object."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [tool, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise ValueError(f"expected a line with REG, STACK and LOCAL from {tool}, came {text!r}")
    return int(found[1]), int(found[2]) + int(found[3])


def main() -> None:
    """Print what each kernel takes, compiled for GPUs without one."""
    columns = "warps instructions barriers registers spilled B shared B"
    print(f"{'kernel':18} {'variant':22} {columns}")
    for row in measure_resources():
        print(
            f"{row.kernel:18} {row.variant:22} {row.num_warps:5} {row.instructions:12} "
            f"{row.barriers:8} {row.registers:9} {row.spilled_bytes:9} {row.shared_bytes:8}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main, name="kernel_resources.py"))
