"""Time greedy verification on one core of the CPU: ours against vLLM's and plain torch.

The output is checked first: all three must be equal. Medians, the three in turn, the caches
overwritten before each call. The exit status is 1 if an output is wrong.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track

from reprise.eval.benchmarks.bench_verify import Shape, make_arguments, ours, vllms
from reprise.eval.report.command_line import run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.tables import table_console, table_of

SHAPES = [
    Shape(*point, "greedy")
    for point in itertools.product([1, 8, 32], [1, 4], [4096, 32000, 151936])
]
CACHE_BYTES = 64 << 20


def calls_of(shape: Shape) -> dict[str, Callable[[], Any]]:
    """What is timed at this shape, by name; each returns a result whose first part is tokens."""
    arguments = make_arguments(shape, "cpu")
    sampler = vllms(arguments, shape)
    return {
        "vllm": lambda: (sampler().sampled_token_ids,),
        "torch": ours(arguments, "torch"),
        "reprise": ours(arguments, "auto"),
    }


def is_right(calls: dict[str, Callable[[], Any]]) -> bool:
    """Whether all emit the same tokens."""
    tokens = [call()[0] for call in calls.values()]
    return all(torch.equal(tokens[0].int(), other.int()) for other in tokens[1:])


def median_us(calls: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Median microseconds of each, called in turn."""
    elsewhere = np.zeros(CACHE_BYTES, np.uint8)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, call in calls.items():
                elsewhere[::64] += 1
                began_s = time.perf_counter()
                call()
                times[name].append(1e6 * (time.perf_counter() - began_s))
    return {name: statistics.median(taken) for name, taken in times.items()}


def use_vllms_cpu_kernels() -> None:
    """As a worker does when it starts: C++ takes the place of vLLM's Triton kernels."""
    import vllm._custom_ops  # noqa: F401
    from vllm.platforms import current_platform

    # vLLM walks over the attributes of every loaded module, and trips over those of llvmlite.
    hidden = [name for name in sys.modules if name.partition(".")[0] == "llvmlite"]
    kept = {name: sys.modules.pop(name) for name in hidden}
    try:
        with warnings.catch_warnings():
            # Deprecated names of torch are among what it walks over.
            warnings.simplefilter("ignore", FutureWarning)
            current_platform.register_triton_kernel_overrides()
    finally:
        sys.modules.update(kept)


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Calls of each.")] = 60,
) -> int:
    """Time greedy verification on one core: Reprise, vLLM and plain torch, checked first."""
    torch.set_num_threads(1)
    use_vllms_cpu_kernels()
    headings = ("batch", "drafts each", "vocabulary", "vLLM", "torch", "Reprise", "to vLLM")
    title = "Greedy verification on one core, median microseconds"
    table = table_of(*headings, title=title, num_words=0)
    for shape in track(SHAPES, "Verifying", transient=True):
        calls = calls_of(shape)
        if not is_right(calls):
            print(f"WRONG {shape}: the three do not emit the same tokens", file=sys.stderr)
            return 1
        us = median_us(calls, repeats=repeats)
        point = (shape.batch, shape.drafts, shape.vocab)
        times = [f"{us[name]:,.0f}" for name in ("vllm", "torch", "reprise")]
        table.add_row(*map(str, point), *times, f"{us['vllm'] / us['reprise']:.1f}x")
    console = table_console()
    console.print(table)
    console.print(f"Measured on {describe_machine()}.", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_verify_cpu.py"))
