# mypy: allow-untyped-calls
"""Time drafting on the device: a step's launch for a batch.

First the output, and all that is kept, is compared with the definition's; then, on a
CUDA device only, every shape is timed in a CUDA graph with a cold L2, and a row is appended to a
CSV. Without a CUDA device the check runs in Triton's interpreter on small shapes, nothing is timed,
and the exit status is 0; it is 1 wherever the check fails.
"""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

from reprise.eval.benchmarks.bench_verify import measure, versions
from reprise.eval.report.command_line import run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.results_csv import RESULTS, append_rows, check_rows_fit
from reprise.kernels.draft import Backend, draft_tokens
from reprise.kernels.draft.arena import CorpusArena
from reprise.kernels.draft.constants import BOS, END
from reprise.kernels.draft.near_row import near_row
from reprise.kernels.draft.state import DraftState
from reprise.spec.corpus.corpus import live_entries
from reprise.spec.corpus.suffix_array import sort_suffixes

RESULTS_FILE = RESULTS / "bench_draft_kernel.csv"
FIELDS = (
    "torch", "triton", "vllm", "batch", "drafts", "context", "near", "sorted", "recent", "p20_us",
    "p50_us", "p80_us", "percent_of_5_ms",
)  # fmt: skip
VOCABULARY = 50_000
ANSWER = 128
PARAGRAPH = 16
STEP_US = 5000.0
LARGEST_CHECK = 8
"""Rows that the definition, which is slow, is asked for."""


class Shape(NamedTuple):
    """One point of the benchmark; all but `batch` in tokens."""

    batch: int
    drafts: int
    context: int
    near: int
    sorted: int
    recent: int


class Step(NamedTuple):
    """What a step drafts from, and where to."""

    state: DraftState
    all_token_ids: torch.Tensor
    total_len: torch.Tensor
    idx_mapping: torch.Tensor
    num_sampled: torch.Tensor
    drafts: torch.Tensor
    chances: torch.Tensor

    def run(self, backend: Backend) -> None:
        draft_tokens(**self._asdict(), backend=backend)


def make_tokens(random: np.random.Generator, length: int) -> np.ndarray:
    """Tokens out of 400 paragraphs, one in 12 replaced, int32 [length]."""
    paragraphs = np.random.default_rng(0).zipf(1.2, (400, PARAGRAPH)) % VOCABULARY
    tokens = paragraphs[random.integers(0, 400, length // PARAGRAPH + 1)].ravel()[:length]
    replaced = random.random(length) < 1 / 12
    return np.where(replaced, random.integers(0, VOCABULARY, length), tokens).astype(np.int32)


def make_text(random: np.random.Generator, length: int) -> np.ndarray:
    """Whole answers of about so many tokens in all: BOS, tokens, END of each."""
    parts = [
        np.concatenate(([BOS], make_tokens(random, ANSWER), [END]))
        for _ in range(length // (ANSWER + 2))
    ]
    return np.concatenate(parts, dtype=np.int32) if parts else np.zeros(0, np.int32)


def make_step(shape: Shape, device: str) -> Step:
    """Requests in the middle of their answers, all of one namespace."""
    random = np.random.default_rng(0)
    arena = CorpusArena(num_corpora=1, arena_tokens=2 * shape.sorted + 2 * shape.recent + 64)
    state = DraftState.create(
        num_slots=shape.batch,
        max_draft=shape.drafts,
        max_near_tokens=max(shape.near, 1),
        num_corpora=1,
        arena_tokens=2 * shape.sorted + 2 * shape.recent + 64,
    )
    text, recent = make_text(random, shape.sorted), make_text(random, shape.recent)
    writes = arena.put(
        "",
        np.concatenate((text, recent)),
        sort_suffixes(text, live_entries(text, 0, len(text))),
        recent_begin=len(text),
        room=0,
    )
    assert writes is not None
    for begin, values in writes.parts:
        state.arena[begin : begin + len(values)] = torch.from_numpy(values)
    state.corpora[0] = torch.from_numpy(writes.fields)
    all_token_ids = torch.zeros((shape.batch, shape.context + 64), dtype=torch.int32)
    for slot in range(shape.batch):
        tokens = make_tokens(random, shape.context)
        all_token_ids[slot, : shape.context] = torch.from_numpy(tokens)
        answers = [make_tokens(random, ANSWER) for _ in range(shape.near // (ANSWER + 2))]
        near = near_row(answers, max_near_tokens=max(shape.near, 1))
        state.near_token_ids[slot, : len(near)] = torch.from_numpy(near)
        state.slots[slot] = torch.tensor([slot + 1, shape.context // 2, len(near), 0])
    tensors = {f.name: getattr(state, f.name).to(device) for f in fields(DraftState)}
    return Step(
        state=DraftState(**tensors),
        all_token_ids=all_token_ids.to(device),
        total_len=torch.full((shape.batch,), shape.context, dtype=torch.int32, device=device),
        idx_mapping=torch.arange(shape.batch, dtype=torch.int32, device=device),
        num_sampled=torch.ones(shape.batch, dtype=torch.int32, device=device),
        drafts=torch.zeros((shape.batch, shape.drafts), dtype=torch.int64, device=device),
        chances=torch.zeros((shape.batch, shape.drafts), device=device),
    )


def check(shape: Shape, device: str) -> str | None:
    """Draft twice by both, tokens coming in between; returns what differs."""
    steps = [make_step(shape, device) for _ in range(2)]
    for number in range(2):
        for step, backend in zip(steps, ("torch", "triton"), strict=True):
            step.run(backend)  # type: ignore[arg-type]
        expected, got = steps
        if not torch.equal(expected.drafts, got.drafts):
            return f"step {number}: expected {expected.drafts.tolist()}, got {got.drafts.tolist()}"
        if not torch.equal(expected.chances, got.chances):
            return f"step {number}: the chances differ"
        for f in fields(DraftState):
            if not torch.equal(getattr(expected.state, f.name), getattr(got.state, f.name)):
                return f"step {number}: {f.name} differs"
        for step in steps:
            step.all_token_ids[:, shape.context] = expected.drafts[:, 0].int()
            step.total_len.add_(1)
    return None if bool(steps[0].chances.any()) else "nothing was drafted"


def run_checks(shapes: list[Shape], device: str) -> bool:
    """Check every shape, say what is wrong, and whether all was well."""
    faults = [(shape, fault) for shape in shapes if (fault := check(shape, device))]
    for shape, fault in faults:
        print(f"WRONG {shape}: {fault}", file=sys.stderr)
    print(f"checked {len(shapes)} shapes against the definition: {len(faults)} wrong")
    return not faults


def measure_shape(shape: Shape) -> dict[str, Any]:
    """Time a step in a CUDA graph: a row."""
    step = make_step(shape, "cuda")
    step.run("triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run("triton")
    timing = measure(graph.replay)
    times = {"p20_us": timing.p20_us, "p50_us": timing.p50_us, "p80_us": timing.p80_us}
    return (
        shape._asdict()
        | {name: round(value, 1) for name, value in times.items()}
        | {"percent_of_5_ms": round(100 * timing.p50_us / STEP_US, 2)}
    )


def main(
    output: Annotated[Path, typer.Option(help="Append rows to this file.")] = RESULTS_FILE,
    quick: Annotated[
        bool, typer.Option("--quick", help="On a CUDA device: one shape for each batch.")
    ] = False,
) -> int:
    """Check drafting against its definition; on a CUDA device, time it."""
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
        fine = run_checks([Shape(2, 4, 300, 600, 2000, 400), Shape(1, 16, 90, 0, 600, 0)], "cpu")
        print(f"Checked in Triton's interpreter on small shapes, on {describe_machine()}.")
        print("No CUDA device: nothing is timed.")
        return 0 if fine else 1
    check_rows_fit(output, fields=FIELDS)
    drafts, texts, corpora = [16], [(1024, 4096)], [(100_000, 4096)]
    if not quick:
        drafts, texts = [8, 16], [*texts, (8192, 8192)]
        corpora = [(0, 0), *corpora, (1_000_000, 4096)]
    shapes = [
        Shape(batch, length, context, near, *corpus)
        for batch, length, (context, near), corpus in itertools.product(
            [1, 8, 32, 128], drafts, texts, corpora
        )
    ]
    if not run_checks([s for s in shapes if s.batch <= LARGEST_CHECK and s.sorted < 10**6], "cuda"):
        return 1
    about = versions()
    print(f"Measured on {about.pop('machine')}.")
    for shape in shapes:
        row = measure_shape(shape)
        append_rows(output, [about | row], fields=FIELDS)
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_draft_kernel.py"))
