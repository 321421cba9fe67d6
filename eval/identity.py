"""How often greedy answers differ: with drafts and without, and without drafts at other batches.

`none` is plain vLLM, `reprise-no-drafts` an engine with Reprise and `features.drafts=false`.

    python eval/identity.py --csv eval/results/identity.csv

Each method serves the same requests in an engine of its own, several times: with so many at once,
from an empty prefix cache. What is compared are answers, token for token, up to the first token in
which two differ; from there on they answer different prompts. Every difference is judged by a model
that is neither engine's (`eval/real_model/first_differences.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from reprise.engine_ext.cli.answer_difference import Difference, Gap, first_difference
from reprise.eval.live.engine_turns import LiveError, serve_in_stages
from reprise.eval.live.live import LEARN_FROM_ANSWERS, model_path
from reprise.eval.live.live_worker import NO_DRAFTS, LiveJob, speculative_config
from reprise.eval.real_model.first_differences import JudgeError, judge
from reprise.eval.real_model.policy_desk import make_policy_desk
from reprise.eval.real_model.smollm2 import SMOLLM2
from reprise.eval.replay.traces import TraceError, TraceRow, limit_rows, load_trace
from reprise.eval.report.command_line import InputError, counts_of, names_of, run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.progress import progress_stages
from reprise.eval.report.results_csv import append_rows, check_rows_fit
from reprise.eval.report.tables import table_console, table_of

METHODS = ("none", "ngram", "suffix", NO_DRAFTS, "reprise")
FIELDS = (
    "model", "dtype", "method", "at_once", "against", "against_at_once", "requests", "tokens",
    "differing", "per_1000_tokens", "ties", "widest_steps",
)  # fmt: skip


class Pass(NamedTuple):
    """One method that serves all requests, so many at once."""

    method: str
    at_once: int


class Comparison(NamedTuple):
    """Answers of one pass against those of another, both to the same requests."""

    one: Pass
    other: Pass
    requests: int
    tokens: int
    """That were compared: of each request up to the first difference, it included."""
    differences: list[Difference]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(measure, arguments, name="identity.py")


def measure(
    model: Annotated[str, typer.Option(help="A folder, or smollm2.")] = SMOLLM2,
    trace: Annotated[
        Path | None, typer.Option(help="Requests; else a support desk with articles.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="As for vLLM.")] = "bfloat16",
    methods: Annotated[str, typer.Option(help="Beside none.")] = ",".join(METHODS[1:]),
    at_once: Annotated[str, typer.Option(help="Requests at once; the most first.")] = "8,1,5",
    limit: Annotated[int, typer.Option(min=1, help="Requests, warm ones not counted.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 96,
    csv: Annotated[Path | None, typer.Option(help="Append the rows to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Measure how often greedy answers differ, by drafts and by what else is in the batch."""
    passes = _passes(at_once)
    named = names_of("--methods", methods, METHODS)
    chosen = ["none", *(name for name in named if name != "none")]
    if csv:
        check_rows_fit(csv, fields=FIELDS)
    try:
        rows = limit_rows(
            load_trace(trace) if trace else make_policy_desk(timed_per_topic=4), limit
        )
        folder = model_path(model, quiet=quiet)
        prompts, answers = _answers(
            chosen, passes, rows, model=folder, dtype=dtype, max_tokens=max_tokens, quiet=quiet
        )
        compared = [compare(prompts, answers, one, other) for one, other in pairs(chosen, passes)]
        differences = [one for comparison in compared for one in comparison.differences]
        gaps = iter(judge(folder, differences))
    except (LiveError, TraceError, JudgeError) as error:
        raise InputError(str(error)) from error
    results = [
        {
            "model": Path(folder).name,
            "dtype": dtype,
            **cells(one, [next(gaps) for _ in one.differences]),
        }
        for one in compared
    ]
    if csv:
        append_rows(csv, results, fields=FIELDS)
    _print(results, f"{Path(folder).name} in {dtype} on {describe_machine()}")


def _passes(text: str) -> list[int]:
    passes = counts_of("--at-once", text)
    if passes[0] != max(passes):
        raise InputError(f"--at-once: expected the largest number first, got {text!r}")
    return passes


def _answers(
    methods: Sequence[str],
    passes: Sequence[int],
    rows: Sequence[TraceRow],
    *,
    model: str,
    dtype: str,
    max_tokens: int,
    quiet: bool,
) -> tuple[list[list[int]], dict[Pass, list[list[int]]]]:
    """Token ids of the prompts, and of each pass's answers."""
    prompts: list[list[int]] = []
    answers: dict[Pass, list[list[int]]] = {}
    with progress_stages(quiet=quiet) as stage:
        for method in methods:
            job = LiveJob(
                model=model,
                speculative_config=speculative_config(method, None),
                rows=list(rows),
                concurrency=passes[0],
                max_tokens=max_tokens,
                drafts=method != NO_DRAFTS,
                learns_from_warm=method in LEARN_FROM_ANSWERS,
                more_passes=list(passes[1:]),
                seed=0,
                dtype=dtype,
            )
            (outcome,) = serve_in_stages(stage, method, [job])
            check_drafted(method, outcome.drafted_tokens)
            prompts = outcome.prompt_token_ids
            outputs = [outcome.output_token_ids, *outcome.more_output_token_ids]
            for at_once, said in zip(passes, outputs, strict=True):
                answers[Pass(method, at_once)] = said
    return prompts, answers


def check_drafted(method: str, num_drafted: int) -> None:
    """See that an engine drafted as its name says, and say so where it did not.

    Raises:
        LiveError: it drafted, and was not to: what is compared with it would tell nothing.
    """
    if method in ("none", NO_DRAFTS):
        if num_drafted:
            raise LiveError(f"{method} drafted {num_drafted} tokens")
    elif not num_drafted:
        print(f"{method} drafted nothing: its answers put no draft to the test", file=sys.stderr)


def pairs(methods: Sequence[str], passes: Sequence[int]) -> Iterator[tuple[Pass, Pass]]:
    """Yield what is compared with what: engines without drafts with themselves at other batches,
    then every method with none at the same batch, and Reprise with itself without drafts."""
    for method in methods:
        if method in ("none", NO_DRAFTS):
            for at_once in passes[1:]:
                yield Pass(method, at_once), Pass(method, passes[0])
    for method in methods[1:]:
        for at_once in passes:
            yield Pass(method, at_once), Pass("none", at_once)
    if {"reprise", NO_DRAFTS} <= set(methods):
        for at_once in passes:
            yield Pass("reprise", at_once), Pass(NO_DRAFTS, at_once)


def compare(
    prompts: Sequence[Sequence[int]],
    answers: dict[Pass, list[list[int]]],
    one: Pass,
    other: Pass,
) -> Comparison:
    """Return how the answers of two passes compare."""
    tokens, differences = 0, []
    for prompt, said, plain in zip(prompts, answers[one], answers[other], strict=True):
        difference = first_difference(prompt, said, plain)
        if difference is None:
            tokens += len(said)
        else:
            tokens += len(difference.token_ids) - len(prompt) + 1
            differences.append(difference)
    return Comparison(one, other, len(prompts), tokens, differences)


def cells(comparison: Comparison, gaps: Sequence[Gap]) -> dict[str, str | int | float]:
    """Return a comparison as a row of the file."""
    return {
        "method": comparison.one.method,
        "at_once": comparison.one.at_once,
        "against": comparison.other.method,
        "against_at_once": comparison.other.at_once,
        "requests": comparison.requests,
        "tokens": comparison.tokens,
        "differing": len(gaps),
        "per_1000_tokens": round(1000 * len(gaps) / comparison.tokens, 3),
        "ties": sum(gap.is_tie for gap in gaps),
        "widest_steps": round(max(gap.bfloat16_steps for gap in gaps), 2) if gaps else "",
    }


def _print(results: Sequence[dict[str, str | int | float]], title: str) -> None:
    headings = ("", "against", "differ", "tokens", "per 1,000", "ties", "widest gap, steps")
    table = table_of(*headings, title=title, num_words=2)
    for row in results:
        table.add_row(
            f"{row['method']}, {row['at_once']} at once",
            f"{row['against']}, {row['against_at_once']} at once",
            f"{row['differing']} of {row['requests']}",
            f"{row['tokens']:,}",
            f"{row['per_1000_tokens']:.2f}",
            f"{row['ties']}",
            f"{row['widest_steps']}",
        )
    table_console().print(table)


if __name__ == "__main__":
    sys.exit(main())
