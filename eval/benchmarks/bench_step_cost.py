"""Benchmark of an engine's steps: what it costs to verify drafted tokens with this model, here.

    python eval/benchmarks/bench_step_cost.py --model my-model --batch 1,8,32

An engine decodes at a fixed batch while a drafter without wits drafts as many tokens as it is told,
for each request. The time of a step over that of one without drafts gives the cost of a drafted
token, which `eval/acceptance_rate.py --cost` takes: at cost C, a step takes 1 + C k times as long
with k drafted tokens for each request as without.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from reprise.eval.demo_data.demo_model import demo_model_path
from reprise.eval.live.engine_environment import engine_environment
from reprise.eval.report.command_line import InputError, counts_of, run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.tables import table_console, table_of

_WARM_STEPS, _STEPS = 5, 40
_PATH = "reprise.eval.benchmarks.bench_step_cost.FixedDrafter"


class FixedDrafter:
    """A proposer for vLLM's `custom_class`: the same number of random tokens for every request."""

    def __init__(self, vllm_config: Any) -> None:
        self.num_drafted = 0
        self._vocabulary = vllm_config.model_config.get_vocab_size()
        self._random = np.random.default_rng(0)

    def load_model(self, *_: Any, **__: Any) -> None:
        """Nothing to load."""

    def propose(self, sampled_token_ids: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        """Drafts [batch, num_drafted]; none where there was no token."""
        shape = (len(sampled_token_ids), self.num_drafted)
        drafts: list[list[int]] = self._random.integers(self._vocabulary, size=shape).tolist()
        return [draft if ids else [] for draft, ids in zip(drafts, sampled_token_ids, strict=True)]


def _set_num_drafted(worker: Any, num_drafted: int) -> None:
    worker.model_runner.drafter.num_drafted = num_drafted


def step_seconds(
    model: str,
    batches: list[int],
    drafted: list[int],
    *,
    context: int,
    load_format: str = "auto",
) -> dict[tuple[int, int], float]:
    """Median seconds of a step by batch and drafted tokens of each request, `context` in cache.

    Starts an engine. Its `load_format` "dummy" takes random weights, of a model known by its
    configuration alone.

    Raises:
        ValueError: `context` leaves no room in the model's context.
    """
    import torch
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    settings: dict[str, Any] = {
        "model": model,
        "load_format": load_format,
        "skip_tokenizer_init": True,
        "enforce_eager": not torch.cuda.is_available(),
        "max_num_seqs": max(batches),
        "enable_prefix_caching": False,
        "speculative_config": {"model": _PATH, "num_speculative_tokens": max(*drafted, 1)},
    }
    config = EngineArgs(**copy.deepcopy(settings)).create_engine_config()
    max_context = config.model_config.max_model_len - _num_emitted(drafted) - max(drafted)
    if context > max_context:  # before an engine is started for nothing
        raise ValueError(f"--context {context}: expected at most {max_context} for this model")
    llm = LLM(**settings)
    try:
        return _time_steps(llm, batches, drafted, context)
    finally:
        llm.llm_engine.engine_core.shutdown()


def _num_emitted(drafted: Sequence[int]) -> int:
    """Return how many tokens a request has to be able to emit: a random one is hardly ever right,
    so that a step emits one, or now and then two."""
    return 2 * (_WARM_STEPS + _STEPS) * len(drafted)


def _time_steps(
    llm: Any, batches: Sequence[int], drafted: Sequence[int], context: int
) -> dict[tuple[int, int], float]:
    from vllm import SamplingParams

    engine = llm.llm_engine
    params = SamplingParams(
        temperature=0.0, max_tokens=_num_emitted(drafted), ignore_eos=True, detokenize=False
    )
    random = np.random.default_rng(1)
    vocabulary = engine.model_config.get_vocab_size()
    seconds: dict[tuple[int, int], float] = {}
    for batch in track(batches, description="batches", console=Console(stderr=True)):
        ids = [f"{batch}-{number}" for number in range(batch)]
        for request_id in ids:
            prompt = random.integers(vocabulary, size=context).tolist()
            engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
        started: set[str] = set()
        while len(started) < batch:
            started |= {output.request_id for output in engine.step()}
        for num_drafted in drafted:
            llm.collective_rpc(_set_num_drafted, args=(num_drafted,))
            times = []
            for _ in range(_WARM_STEPS + _STEPS):
                began = time.perf_counter()
                engine.step()
                times.append(time.perf_counter() - began)
            seconds[batch, num_drafted] = statistics.median(times[_WARM_STEPS:])
        if engine.get_num_unfinished_requests() < batch:
            raise RuntimeError("requests ended too early: too many random tokens were right")
        llm.collective_rpc(_set_num_drafted, args=(0,))
        engine.abort_request(ids)
        while engine.has_unfinished_requests():
            engine.step()
    return seconds


def cost_per_token(seconds: dict[tuple[int, int], float], batch: int, drafted: int) -> float:
    """The cost C of a drafted token that explains this point."""
    return (seconds[batch, drafted] / seconds[batch, 0] - 1) / drafted


def main(
    model: Annotated[str, typer.Option(help="without, the demo model")] = "",
    batch: Annotated[str, typer.Option(help="requests at once, comma between")] = "1,8,32",
    drafted: Annotated[str, typer.Option(help="drafted tokens of each request")] = "1,2,4,8,16",
    context: Annotated[int, typer.Option(min=1, help="tokens in cache for each request")] = 256,
    load_format: Annotated[str, typer.Option(help="'dummy' for random weights")] = "auto",
) -> None:
    """Time an engine's steps by batch and drafted tokens, and print what a drafted token costs."""
    batches = sorted(set(counts_of("--batch", batch)))
    lengths = [0, *sorted(set(counts_of("--drafted", drafted)))]
    # Set before vLLM is imported: quiet, and functions may be sent to its workers.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    # What a user's engine pays for drafts of any kind: vLLM without our plugin.
    os.environ.update(engine_environment(with_reprise=False))
    try:
        seconds = step_seconds(
            model or str(demo_model_path()),
            batches,
            lengths,
            context=context,
            load_format=load_format,
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise InputError(str(error).strip().splitlines()[0]) from error
    headings = ("batch", "no drafts", *(f"{length} each" for length in lengths[1:]))
    title = f"milliseconds of a step, and cost of a drafted token ({_device()})"
    table = table_of(*headings, title=title, num_words=0)
    for size in batches:
        cells = [
            f"{1e3 * seconds[size, length]:.2f} ({cost_per_token(seconds, size, length):.3f})"
            for length in lengths[1:]
        ]
        table.add_row(f"{size}", f"{1e3 * seconds[size, 0]:.2f}", *cells)
    table_console().print(table)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return describe_machine()


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_step_cost.py"))
