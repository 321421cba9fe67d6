"""The demo: a real vLLM on this machine, with and without cached answers to draft from.

    make demo

A support desk's requests, each with the articles that retrieval would have found, are answered by
SmolLM2-135M-Instruct, which is fetched once. Each method has an engine of its own; the engines take
turns of a second. Our plugin is loaded into ours alone: the others are vLLM as its users get it.
With `--small` the model is one that comes with the sources, and no network is needed.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from reprise.engine_ext.answer_page.records import CachedReply, RecordedTrace
from reprise.engine_ext.answer_page.shown import shown_traces
from reprise.engine_ext.cli.answer_difference import TIE_STEPS, Difference, Gap, first_difference
from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.engine_turns import LiveError, serve_in_stages
from reprise.eval.live.live import (
    LEARN_FROM_ANSWERS,
    method_groups,
    run_of_outcome,
    say_what_is_unrecorded,
)
from reprise.eval.live.live_worker import (
    MAX_OUTPUT_TOKENS,
    LiveJob,
    LiveOutcome,
    speculative_config,
)
from reprise.eval.real_model.first_differences import JudgeError, judge
from reprise.eval.real_model.policy_desk import make_policy_desk
from reprise.eval.real_model.smollm2 import SMOLLM2_DTYPE, ModelError, smollm2_path
from reprise.eval.replay.peer_drafters import all_but_missing
from reprise.eval.replay.recording import recorded_trace
from reprise.eval.replay.results import Run
from reprise.eval.replay.semantic_cache import cached_replies, cached_rows
from reprise.eval.replay.token_rows import load_tokenizer
from reprise.eval.replay.traces import TraceRow, limit_rows
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.html_report import write_html
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.progress import progress_stages
from reprise.eval.report.tables import table_console, table_of
from reprise.retrieval.search.embedding import Embedder

CONCURRENCY = 8
CACHE_THRESHOLD = 0.8
"""Cosine from which on the semantic cache that is compared with answers."""
_ENGINE_BYTES = 4 << 30  # with a key-value cache of one GiB, and the processes around it
_IN_ORDER = (
    "There is no memory for all engines at once, so they ran one after the other: what slowed one"
    " down, another may not have met."
)
_LABELS = {
    "none": "no speculation",
    "ngram": "n-gram (vLLM)",
    "suffix": "SuffixDecoding",
    "reprise": "Reprise",
}


class Scene(NamedTuple):
    """What is served, and by what."""

    name: str
    model: str
    dtype: str
    rows: list[TraceRow]
    max_tokens: int
    """Of an answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0, or 2 if no engine can be started, or 1 if an answer differs that should
    not."""
    return run_command(demo, arguments, name="demo.py")


def demo(
    small: Annotated[
        bool,
        typer.Option(
            "--small",
            help="A model of 1.6 million parameters that comes with the sources, in float32, in"
            " place of SmolLM2 (135 million, bfloat16; 98 MB are downloaded once).",
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many timed requests, the first ones.")
    ] = None,
    html: Annotated[
        Path, typer.Option(help="Write a page that shows answers token by token.")
    ] = Path("demo.html"),
) -> int:
    """Serve a support desk with real vLLM engines: no speculation, its peers, and Reprise."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError("vLLM is not installed")
    if not html.resolve().parent.is_dir():
        raise InputError(f"{html}: its folder does not exist")
    methods = all_but_missing(["none", "ngram", "suffix", "reprise"])
    take_turns = _available_bytes() >= len(methods) * _ENGINE_BYTES
    try:
        scene = _small_scene(limit) if small else _real_scene(limit)
        page = recorded_trace(scene.rows)
        runs, differences = _serve_all(methods, scene, page, take_turns=take_turns)
        gaps = [] if small else _judge(scene, differences)
    except (LiveError, ModelError, JudgeError) as error:
        raise InputError(str(error)) from error
    _print(runs, scene)
    console = table_console()
    if not take_turns:
        console.print(_IN_ORDER, soft_wrap=True)
    _write_page(html, scene, runs, page, take_turns=take_turns)
    console.print(f"What came for free, token by token: {html.resolve()}", soft_wrap=True)
    if gaps:
        console.print(said_of_gaps(gaps), soft_wrap=True)
    console.print(f"{scene.name} in {scene.dtype} on {describe_machine()}.", soft_wrap=True)
    unexplained = [gap for gap in gaps if not gap.is_tie]
    return int(bool(differences if small else unexplained))


def _small_scene(limit: int | None) -> Scene:
    return Scene(
        name="The small model of the sources",
        model=str(demo_model_path()),
        dtype=DEMO_DTYPE,
        rows=limit_rows(make_demo_trace(), limit),
        max_tokens=MAX_OUTPUT_TOKENS,
    )


def _real_scene(limit: int | None) -> Scene:
    return Scene(
        name="SmolLM2-135M-Instruct",
        model=str(smollm2_path()),
        dtype=SMOLLM2_DTYPE,
        rows=limit_rows(make_policy_desk(topics=12), limit),
        max_tokens=96,
    )


def _serve_all(
    methods: Sequence[str], scene: Scene, page: RecordedTrace, *, take_turns: bool
) -> tuple[list[Run], list[Difference]]:
    """Engines that take turns where there is memory for all of them, so that a slow minute of the
    machine meets them all; else one after the other. Runs, and where answers differ from those of
    the first; the page gets the first answers of all."""
    outcomes: list[LiveOutcome] = []
    with progress_stages(quiet=False) as stage:
        for group in method_groups(methods, take_turns=take_turns):
            jobs = [
                LiveJob(
                    model=scene.model,
                    speculative_config=speculative_config(method, None),
                    rows=scene.rows,
                    concurrency=CONCURRENCY,
                    max_tokens=scene.max_tokens,
                    learns_from_warm=method in LEARN_FROM_ANSWERS,
                    seed=0,
                    dtype=scene.dtype,
                    num_recorded=len(page.questions),
                )
                for method in group
            ]
            name = f"vLLM with {', '.join(_LABELS[method] for method in group)}"
            outcomes += serve_in_stages(stage, name, jobs)
    for method, outcome in zip(methods, outcomes, strict=True):
        say_what_is_unrecorded(method, outcome)
    page.answers = {m: outcome.records for m, outcome in zip(methods, outcomes, strict=True)}
    page.cached = _cached_replies(scene.rows, outcomes[-1])[: len(page.questions)]
    reference = outcomes[0].output_token_ids
    runs = [
        run_of_outcome("demo", method, outcome, reference, cost=0.0)
        for method, outcome in zip(methods, outcomes, strict=True)
    ]
    return runs, [
        difference
        for outcome in outcomes[1:]
        for prompt, said, plain in zip(
            outcome.prompt_token_ids, outcome.output_token_ids, reference, strict=True
        )
        if (difference := first_difference(prompt, said, plain))
    ]


def _cached_replies(rows: Sequence[TraceRow], outcome: LiveOutcome) -> list[CachedReply | None]:
    """What a semantic cache would have said to each timed row, of the answers of this outcome."""
    with progress_stages(quiet=False) as stage, stage("A semantic cache, for comparison", 1):
        served_from = cached_rows(rows, embedder=Embedder(), threshold=CACHE_THRESHOLD)
    timed, warm = iter(outcome.output_token_ids), iter(outcome.warm_output_token_ids)
    answers = {number: next(warm if row.warm else timed) for number, row in enumerate(rows)}
    return cached_replies(rows, served_from, answers)


def _write_page(
    path: Path, scene: Scene, runs: Sequence[Run], page: RecordedTrace, *, take_turns: bool
) -> None:
    config = {
        "engine": "vllm",
        "command": shlex.join(["python", "eval/demo.py", *sys.argv[1:]]),
        "answered_by": f"{scene.name} in {scene.dtype}",
        "engines": "take turns" if take_turns else "run one after the other",
        "machine": describe_machine(),
        "threshold": CACHE_THRESHOLD,
    }
    write_html(
        path,
        config,
        runs,
        plot_svg=None,
        answers=shown_traces({"demo": page}, load_tokenizer(scene.model)),
    )


def _judge(scene: Scene, differences: Sequence[Difference]) -> list[Gap]:
    with progress_stages(quiet=not differences) as stage, stage("Judging what differs", 1):
        return judge(scene.model, differences)


def said_of_gaps(gaps: Sequence[Gap]) -> str:
    """One sentence about answers that differ from those without speculation."""
    widest = max(gap.bfloat16_steps for gap in gaps)
    ties = sum(gap.is_tie for gap in gaps)
    return (
        f"Answers that differ: {len(gaps)}. Where each first does, the logits of the two tokens are"
        f" at most {widest:.1f} steps of bfloat16 apart; {ties} of {len(gaps)} are within"
        f" {TIE_STEPS} steps of the best, which rounding decides, in vLLM without speculation too."
    )


def _available_bytes() -> int:
    """Memory that programs can still have."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _print(runs: Sequence[Run], scene: Scene) -> None:
    console = table_console()
    warm = sum(row.warm for row in scene.rows)
    title = f"{runs[0].requests} support requests, {CONCURRENCY} at a time, after {warm} earlier"
    by_method = {run.method: run for run in runs}
    suffix = by_method.get("suffix")
    headings = ("", "tokens/s", "to none", "to suffix", "MAL", "drafted/step", "identical")
    table = table_of(*headings, title=f"{title} answers")
    for run in runs:
        table.add_row(
            _LABELS[run.method],
            f"{run.output_tokens_per_s or 0:,.0f}",
            f"{_ratio(run, by_method['none']):.2f}",
            "" if suffix is None else f"{_ratio(run, suffix):.2f}",
            f"{run.mean_acceptance_length or 1:.2f}",
            f"{run.drafted_per_step or 0:.2f}",
            f"{run.identical_outputs} of {run.requests}",
            style="bold" if run.method == "reprise" else None,
        )
    console.print(table)
    console.print(summary(runs), soft_wrap=True)


def summary(runs: Sequence[Run]) -> str:
    """One sentence that says what the figures say, good or bad."""
    by_method = {run.method: run for run in runs}
    none, reprise = by_method["none"], by_method["reprise"]
    peers = [run for run in runs if run.method not in ("none", "reprise")]
    speed = _ratio(reprise, none)
    compared = f"{max(speed, 1 / speed):.2f} times {'faster' if speed > 1 else 'slower'} than"
    if f"{speed:.2f}" == "1.00":
        compared = "as fast as"
    sentence = (
        f"With Reprise vLLM gave {_identical(reprise)} {compared} without speculation, in"
        f" {_fewer(reprise, none)} steps"
    )
    if peers:
        best = max(peers, key=lambda run: run.output_tokens_per_s or 0.0)
        margin = round(100 * (_ratio(reprise, best) - 1))
        verb = (
            f"{abs(margin)}% {'ahead of' if margin > 0 else 'behind'}" if margin else "as fast as"
        )
        sentence += f", and was {verb} the best peer, {_LABELS[best.method]}"
    return sentence + "."


def _identical(run: Run) -> str:
    if run.identical_outputs == run.requests:
        return f"the same {run.requests} answers"
    return f"answers of which only {run.identical_outputs} of {run.requests} were the same"


def _fewer(run: Run, none: Run) -> str:
    """Steps of a run against those without speculation."""
    share = run.steps / none.steps if none.steps else 1.0
    return f"{abs(1 - share):.0%} {'fewer' if share <= 1 else 'more'}"


def _ratio(run: Run, to: Run) -> float:
    return (run.output_tokens_per_s or 0.0) / (to.output_tokens_per_s or 1.0)


if __name__ == "__main__":
    sys.exit(main())
