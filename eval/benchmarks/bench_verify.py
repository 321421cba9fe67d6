"""Time `verify_drafts` against vLLM's own verification and plain torch.

First the output is checked; then, on a CUDA device only, every shape is timed with a cold L2, and a
row for each implementation is appended to a CSV. Without a CUDA device the check runs in Triton's
interpreter on small shapes, nothing is timed, and the exit status is 0; it is 1 wherever the check
fails.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from reprise.eval.report.command_line import run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.results_csv import RESULTS, append_rows, check_rows_fit

RESULTS_FILE = RESULTS / "bench_verify.csv"
FIELDS = (
    "torch", "triton", "vllm", "copy_gb_per_s", "batch", "drafts", "vocab", "sampling",
    "implementation", "p20_us", "p50_us", "p80_us", "extra_bytes", "extra_percent_of_logits",
    "gb_per_s", "percent_of_copy", "times_vllm",
)  # fmt: skip
SAMPLING = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
}
MAX_DIFFERING_SHARE = 1e-3
"""Share of sampled requests that may differ: sums round otherwise, a uniform may fall between."""

Result = tuple[torch.Tensor, torch.Tensor]


class Shape(NamedTuple):
    """One point of the benchmark."""

    batch: int
    drafts: int
    vocab: int
    sampling: str


class Timing(NamedTuple):
    """One implementation at one shape."""

    p20_us: float
    p50_us: float
    p80_us: float
    extra_bytes: int
    """Most memory in use during the call, above what was in use before and without its output."""


def make_arguments(shape: Shape, device: str) -> dict[str, Any]:
    """Arguments of `verify_drafts`, with bf16 logits of which 32 in a row stand out.

    So few tokens share most of the mass, as in a language model's output. The likeliest tokens are
    drafted, but for every second request's last draft, which is token 0.
    """
    generator = torch.Generator(device).manual_seed(0)
    rows = shape.batch * (shape.drafts + 1)
    logits = torch.randn(rows, shape.vocab, generator=generator, device=device).mul_(2.0)
    favourites = torch.randint(shape.vocab, (rows, 32), generator=generator, device=device)
    boost = torch.rand(rows, 32, generator=generator, device=device) * 10 + 5
    logits = logits.scatter_add_(1, favourites, boost).bfloat16()
    best = logits.argmax(dim=1).view(shape.batch, -1)[:, : shape.drafts].clone()
    best[1::2, -1] = 0
    chosen = SAMPLING[shape.sampling]

    def full(name: str) -> torch.Tensor | None:
        return torch.full((shape.batch,), chosen[name], device=device) if name in chosen else None

    return {
        "logits": logits,
        "draft_token_ids": best.flatten().int().contiguous(),
        "cu_num_draft_tokens": torch.arange(
            shape.drafts, rows - shape.batch + 1, shape.drafts, dtype=torch.int32, device=device
        ),
        "temperature": full("temperature"),
        "top_k": None,
        "top_p": full("top_p"),
        "min_p": None,
        "seeds": torch.arange(shape.batch, device=device),
        "offsets": torch.arange(shape.batch, device=device),
        "max_draft": shape.drafts,
    }


def check(shape: Shape, device: str) -> str | None:
    """What is wrong with the Triton backend at this shape, or None."""
    from reprise.kernels.verify import verify_drafts

    arguments = make_arguments(shape, device)
    expected, _ = verify_drafts(**arguments, backend="torch")
    tokens, accepted = verify_drafts(**arguments, backend="triton")
    if not torch.equal((tokens >= 0).sum(dim=1), accepted.long() + 1):
        return "the accepted counts do not fit the emitted tokens"
    differing = int((tokens != expected).any(dim=1).sum())
    allowed = 0 if shape.sampling == "greedy" else max(1, int(MAX_DIFFERING_SHARE * shape.batch))
    if differing > allowed or (device == "cpu" and differing):
        return f"{differing} of {shape.batch} requests differ from the reference"
    return None


def ours(arguments: dict[str, Any], backend: str) -> Callable[[], Result]:
    """A call of `verify_drafts`."""
    from reprise.kernels.verify import verify_drafts

    return lambda: verify_drafts(**arguments, backend=backend)  # type: ignore[arg-type]


def vllms(arguments: dict[str, Any], shape: Shape) -> Callable[[], Any]:
    """A call of vLLM's rejection sampler on the same batch.

    Raises:
        Exception: whatever a vLLM that is missing, or of another version, gives.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    batch, device = shape.batch, arguments["logits"].device
    drafts = SpecDecodeMetadata.make_dummy([[0] * shape.drafts] * batch, device)
    place = torch.arange(batch * (shape.drafts + 1), dtype=torch.int32, device=device)
    is_bonus = place % (shape.drafts + 1) == shape.drafts
    drafts.target_logits_indices = place[~is_bonus]
    drafts.bonus_logits_indices = place[is_bonus]
    drafts.draft_token_ids = arguments["draft_token_ids"]
    none = torch.zeros(batch, device=device)
    greedy = arguments["temperature"] is None
    metadata = SamplingMetadata(
        temperature=arguments["temperature"],
        all_greedy=greedy,
        all_random=not greedy,
        top_p=arguments["top_p"],
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none + 1,
        output_token_ids=[],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )
    sampler = RejectionSampler(Sampler())
    return lambda: sampler(drafts, None, arguments["logits"], metadata)


def measure(call: Callable[[], Any], *, repeats: int = 50) -> Timing:
    """Time a call on the current CUDA device: events around it, and L2 overwritten before it."""
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    for _ in range(5):
        kept = call()
    torch.cuda.synchronize()
    kept_bytes = sum(one.nbytes for one in kept) if isinstance(kept, tuple) else 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    again = call()
    torch.cuda.synchronize()
    extra_bytes = torch.cuda.max_memory_allocated() - before - kept_bytes
    del kept, again
    pairs = []
    for _ in range(repeats):
        flush.zero_()
        event: Any = torch.cuda.Event  # torch does not type its arguments
        pairs.append((event(enable_timing=True), event(enable_timing=True)))
        pairs[-1][0].record()
        call()
        pairs[-1][1].record()
    torch.cuda.synchronize()
    times = torch.tensor([start.elapsed_time(end) * 1e3 for start, end in pairs])
    p20, p50, p80 = torch.quantile(times, torch.tensor([0.2, 0.5, 0.8])).tolist()
    return Timing(p20, p50, p80, extra_bytes)


def copy_gb_per_s() -> float:
    """Bandwidth of a copy of 2 GiB on the device, bytes read plus bytes written."""
    source = torch.randint(-128, 127, (2**31,), dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source))
    return 2 * source.nbytes / timing.p50_us / 1e3


def measure_shape(shape: Shape, copy: float) -> list[dict[str, Any]]:
    """Time every implementation at one shape: a row for each."""
    arguments = make_arguments(shape, "cuda")
    calls: dict[str, Callable[[], Any]] = {"triton": ours(arguments, "triton")}
    calls["torch"] = ours(arguments, "torch")
    try:
        calls["vllm"] = vllms(arguments, shape)
        calls["vllm"]()
    except Exception as error:  # another version, or none: the other two are still worth timing
        calls.pop("vllm", None)
        print(f"vLLM's path is left out: {type(error).__name__}: {error}", file=sys.stderr)
    timings = {name: measure(call) for name, call in calls.items()}
    logits_bytes = arguments["logits"].nbytes
    rows = []
    for name, timing in timings.items():
        gb_per_s = logits_bytes / timing.p50_us / 1e3
        baseline = timings.get("vllm")
        rows.append(
            shape._asdict()
            | {"implementation": name}
            | {key: round(value, 1) for key, value in timing._asdict().items()}
            | {
                "extra_percent_of_logits": round(100 * timing.extra_bytes / logits_bytes, 2),
                "gb_per_s": round(gb_per_s, 1),
                "percent_of_copy": round(100 * gb_per_s / copy, 1),
                "times_vllm": round(baseline.p50_us / timing.p50_us, 2) if baseline else "",
            }
        )
    return rows


def versions() -> dict[str, str]:
    """The device, and the versions of what is compared."""
    import triton

    try:
        from vllm import __version__ as vllm_version
    except ImportError:
        vllm_version = ""
    return {
        "machine": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "vllm": vllm_version,
    }


def run_checks(shapes: list[Shape], device: str) -> bool:
    """Check every shape, say what is wrong, and whether all was well."""
    faults = [(shape, fault) for shape in shapes if (fault := check(shape, device))]
    for shape, fault in faults:
        print(f"WRONG {shape}: {fault}", file=sys.stderr)
    print(f"checked {len(shapes)} shapes against the reference: {len(faults)} wrong")
    return not faults


def main(
    output: Annotated[Path, typer.Option(help="Append rows to this file.")] = RESULTS_FILE,
    check: Annotated[bool, typer.Option("--check", help="Time nothing.")] = False,
) -> int:
    """Check `verify_drafts` against its reference; on a CUDA device, time it against vLLM's."""
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
        small = itertools.product([1, 3], [2], [61, 5003], SAMPLING)
        fine = run_checks([Shape(*point) for point in small], "cpu")
        print(f"Checked in Triton's interpreter on small shapes, on {describe_machine()}.")
        print("No CUDA device: nothing is timed.")
        return 0 if fine else 1
    check_rows_fit(output, fields=FIELDS)
    shapes = [
        Shape(*point)
        for point in itertools.product([1, 8, 32, 128], [4, 8], [32000, 151936], SAMPLING)
    ]
    if not run_checks(shapes, "cuda"):
        return 1
    if check:
        return 0
    copy, about = copy_gb_per_s(), versions()
    print(f"Measured on {about['machine']}, where a copy moves {copy:.0f} GB/s.")
    about["copy_gb_per_s"] = f"{copy:.1f}"
    for shape in shapes:
        rows = measure_shape(shape, copy)
        append_rows(output, [about | row for row in rows], fields=FIELDS)
        for row in rows:
            print(
                f"{shape.batch:4} x {shape.drafts} x {shape.vocab:6} {shape.sampling:11} "
                f"{row['implementation']:7} {row['p20_us']:9} {row['p50_us']:9} "
                f"{row['p80_us']:9} us "
                f"{row['percent_of_copy']:6}% of copy  {row['times_vllm']} x vLLM  "
                f"{row['extra_percent_of_logits']}% extra memory"
            )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_verify.py"))
