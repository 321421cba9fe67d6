"""A campaign against vLLM's step: requests that end in every way at once, token for token.

    python eval/campaigns/step_campaign.py --requests 400 --seeds 5
    python eval/campaigns/step_campaign.py --requests 20000 --seeds 50 \\
        --model my-model --trace requests.jsonl

Small contexts, few KV blocks and priorities: requests end at the end of the context, at their last
block, by a stop string, by a grammar and by abort, while others are preempted, in the same steps.
What each says is compared with what vLLM says without speculation, both in float32, where a token
does not depend on what is computed beside it. Requests are drawn from a seed; the same one gives
the same requests again. The exit status is 1 if a token was wrong, a request was lost, an engine
ended, or an error was swallowed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH
from reprise.eval.campaigns.step_requests import (
    BLOCK,
    Planned,
    Question,
    Settings,
    draw_questions,
    draw_requests,
)
from reprise.eval.demo_data.demo_model import demo_model_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.settled_report import settled_report
from reprise.eval.replay.token_rows import TokenizerError, load_tokenizer
from reprise.eval.replay.traces import TraceError, load_trace
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.progress_log import ProgressLog
from reprise.eval.report.tables import table_console, table_of

_MAX_STEPS_WITHOUT_OUTPUT = 5_000


class Way(NamedTuple):
    """An engine to run the campaign against."""

    name: str
    settings: Settings
    runs_ahead: bool = False
    """As on a GPU: engine core and model runner in one process."""


_TIGHT: Settings = {
    "block_size": BLOCK,
    "max_num_seqs": 12,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 30,
}
WAYS = (
    Way(
        "scheduled ahead, priorities, few blocks",
        {
            **_TIGHT,
            "max_model_len": 96,
            "num_gpu_blocks_override": 10,
            "scheduling_policy": "priority",
        },
    ),
    Way(
        "scheduled ahead, prompts in pieces, fewest blocks, nothing cached",
        {
            **_TIGHT,
            "max_model_len": 128,
            "num_gpu_blocks_override": 10,
            "max_num_batched_tokens": 48,
            "enable_prefix_caching": False,
        },
    ),
    Way(
        "step by step, priorities, few blocks",
        {
            **_TIGHT,
            "max_model_len": 96,
            "num_gpu_blocks_override": 10,
            "scheduling_policy": "priority",
            "async_scheduling": False,
        },
    ),
    Way(
        "run ahead, priorities, few blocks",
        {
            **_TIGHT,
            "max_model_len": 96,
            "num_gpu_blocks_override": 10,
            "scheduling_policy": "priority",
        },
        runs_ahead=True,
    ),
)


@dataclass
class Outcome:
    """What became of a way's requests."""

    requests: Counter[str] = field(default_factory=Counter)
    """By kind of end."""
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    preemptions: int = 0
    accepted: int = 0
    steps: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.wrong or self.lost or self.errors)


def sampling_params(question: Question) -> Any:
    """vLLM's, greedy."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    given = dict(question.params)
    if (regex := given.pop("regex", None)) is not None:
        given["structured_outputs"] = StructuredOutputsParams(regex=regex)
    return SamplingParams(temperature=0.0, **given)


Said = tuple[tuple[int, ...], str | None]
"""Tokens, and why they end."""


def plain_answers(model: str, settings: Settings, questions: Sequence[Question]) -> list[Said]:
    """What vLLM says without speculation, with room enough."""
    keep = {"max_model_len", "block_size", "enforce_eager", "kv_cache_memory_bytes"}
    llm = _engine(model, {name: settings[name] for name in settings.keys() & keep})
    try:
        outputs = llm.generate(
            [{"prompt_token_ids": list(question.prompt)} for question in questions],
            [sampling_params(question) for question in questions],
            use_tqdm=False,
        )
    finally:
        llm.llm_engine.engine_core.shutdown()
    completions = [output.outputs[0] for output in outputs]
    return [(tuple(one.token_ids), one.finish_reason) for one in completions]


def _engine(model: str, settings: Settings) -> Any:
    from vllm import LLM

    return LLM(model=model, dtype="float32", disable_log_stats=False, **settings)


@contextmanager
def reprise_engine(model: str, way: Way) -> Iterator[Any]:
    """An engine with our proposer, which drafts as much as it can."""
    from reprise.engine_ext import plugin
    from reprise.engine_ext.scheduling import async_scheduling

    plugin.apply_all()
    was_overlapping = async_scheduling.is_overlapping
    was_multiprocessing = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    if way.runs_ahead:
        async_scheduling.is_overlapping = lambda: True
        # vLLM reads a number; its CPU platform, which wants another executor, a "1".
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "01"
    try:
        llm = _engine(
            model,
            way.settings
            | {
                "speculative_config": {"model": PROPOSER_PATH, "num_speculative_tokens": 16},
                "additional_config": {
                    "reprise": {
                        "drafts": {"verify_cost": 0.02},
                        # Pinned prefixes have a part in each step, and must change no answer.
                        "kv_pins": {"enabled": True, "shared_by": 2},
                    }
                },
            },
        )
    finally:
        async_scheduling.is_overlapping = was_overlapping
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = was_multiprocessing
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def run_requests(
    llm: Any,
    requests: Sequence[Planned],
    expected: dict[Question, Said],
    random: np.random.Generator,
    outcome: Outcome,
    *,
    name: str,
) -> None:
    """Ask all requests, some twenty at a time, and compare what is said."""
    engine = llm.llm_engine
    waiting = list(enumerate(requests))[::-1]
    live: dict[str, tuple[Planned, int]] = {}
    said: dict[str, Said] = {}
    idle = 0
    while waiting or live:
        while waiting and len(live) < int(random.integers(12, 28)):
            number, planned = waiting.pop()
            request_id = f"{name}-{number}"
            prompt = {"prompt_token_ids": list(planned.question.prompt)}
            params = sampling_params(planned.question)
            engine.add_request(request_id, prompt, params, priority=planned.priority)
            live[request_id] = planned, outcome.steps
        outputs = engine.step()
        outcome.steps += 1
        idle = 0 if outputs else idle + 1
        if idle > _MAX_STEPS_WITHOUT_OUTPUT:
            outcome.lost += len(live)
            return
        for output in outputs:
            one = output.outputs[0]
            said[output.request_id] = tuple(one.token_ids), one.finish_reason
            if output.finished:
                planned, _ = live.pop(output.request_id)
                outcome.requests[planned.question.kind] += 1
                _compare(said[output.request_id], expected[planned.question], planned, outcome)
        for request_id, (planned, arrived) in tuple(live.items()):
            if planned.abort_after is not None and outcome.steps - arrived >= planned.abort_after:
                engine.abort_request([request_id])
                del live[request_id]
                outcome.requests["abort"] += 1
                tokens, _ = said.get(request_id, ((), None))
                whole, _ = expected[planned.question]
                _compare((tokens, None), (whole[: len(tokens)], None), planned, outcome)


def _compare(said: Said, expected: Said, planned: Planned, outcome: Outcome) -> None:
    if said != expected:
        question = planned.question
        outcome.wrong.append(
            f"{question.kind}, prompt of {len(question.prompt)}, {dict(question.params)}: "
            f"{said}, expected {expected}"
        )


def run_way(
    way: Way,
    model: str,
    texts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    count: int,
    *,
    log: Callable[[str], None],
) -> Outcome:
    """Run all seeds of a way against one engine, which has seen the questions of those before."""
    outcome = Outcome()
    random = np.random.default_rng(0)
    max_model_len = way.settings["max_model_len"]
    questions = draw_questions(
        texts, max_model_len, random, min(1500, 40 + count * len(seeds) // 3)
    )
    questions = list(dict.fromkeys(questions))
    log(f"{way.name}: {len(questions)} questions to vLLM without speculation")
    expected = dict(zip(questions, plain_answers(model, way.settings, questions), strict=True))
    began_s = time.perf_counter()
    with _complaints(outcome), reprise_engine(model, way) as llm:
        for seed in seeds:
            random = np.random.default_rng(seed)
            requests = draw_requests(questions, random, count)
            run_requests(llm, requests, expected, random, outcome, name=f"{seed}")
            log(
                f"{way.name}: {outcome.requests.total()} of {count * len(seeds)} requests; "
                f"{len(outcome.wrong)} wrong, {outcome.lost} lost"
            )
        try:
            report = settled_report(llm, timeout_s=60.0)
        except TimeoutError:  # counted below
            (report,) = llm.collective_rpc("reprise_stats")
        outcome.errors += [f"{name}: {times}" for name, times in report["errors"].items()]
        outcome.lost += report["live_requests"]
        outcome.accepted = report["provider"]["accepted"]
        if not outcome.accepted:
            outcome.errors.append("no drafted token was accepted: nothing was put to the test")
        metrics = {one.name: one.value for one in llm.get_metrics() if hasattr(one, "value")}
        outcome.preemptions = int(metrics["vllm:num_preemptions"])
    outcome.seconds = time.perf_counter() - began_s
    return outcome


@contextmanager
def _complaints(outcome: Outcome) -> Iterator[None]:
    """What an engine's processes complain of, of ours or in the end, goes into the outcome."""
    with tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except Exception as error:
            outcome.errors.append(f"the engine ended: {error}".splitlines()[0])
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            outcome.errors += [line for line in lines if "Reprise: " in line and "failed" in line]
            if outcome.errors:
                outcome.errors += lines[-40:]


def main(
    requests: Annotated[int, typer.Option(min=1, help="in all")] = 400,
    seeds: Annotated[int, typer.Option(min=1, help="the requests are drawn from 0 to here")] = 4,
    model: Annotated[str, typer.Option(help="without, the demo model")] = "",
    trace: Annotated[Path | None, typer.Option(help="without, the demo trace")] = None,
    way: Annotated[int | None, typer.Option(help="only this one of the engines, from 0 on")] = None,
    log: Annotated[Path | None, typer.Option(help="append progress to this file")] = None,
) -> int:
    """Run the campaign and print a row for each engine."""
    # Set before vLLM is imported: quiet but for errors.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"  # where complaints are looked for
    model = model or str(demo_model_path())
    try:
        tokenizer = load_tokenizer(model)
        rows = make_demo_trace(seed=0) if trace is None else load_trace(trace)
    except (TokenizerError, TraceError) as error:
        raise InputError(str(error)) from error
    texts = [tokenizer.encode(row.prompt + " " + row.response).tolist() for row in rows[:200]]
    texts = [text for text in texts if len(text) > 3 * BLOCK]
    if not texts:
        raise InputError("--trace: expected longer texts")
    chosen = [one for number, one in enumerate(WAYS) if way in (None, number)]
    if not chosen:
        raise InputError(f"--way: expected 0 to {len(WAYS) - 1}, got {way}")
    count = -(-requests // seeds)
    say = ProgressLog(log)
    columns = ("requests", "wrong", "lost", "errors", "preemptions", "accepted", "steps", "s")
    table = table_of("engine", *columns, title=f"{count} requests of each of {seeds} seeds")
    ends: Counter[str] = Counter()
    is_good = True
    for number, one in enumerate(chosen):
        outcome = run_way(one, model, texts, range(seeds)[number :: len(chosen)], count, log=say)
        ends += outcome.requests
        is_good &= outcome.is_good
        found = [outcome.requests.total(), len(outcome.wrong), outcome.lost, len(outcome.errors)]
        found += [outcome.preemptions, outcome.accepted, outcome.steps, round(outcome.seconds)]
        table.add_row(one.name, *map(str, found))
        for line in [*outcome.wrong[:10], *outcome.errors]:
            typer.echo(line, err=True)
    console = table_console()
    console.print(table)
    console.print("ends:", ", ".join(f"{kind} {count}" for kind, count in ends.most_common()))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(run_command(main, name="step_campaign.py"))
