"""Whether a seed gives the sample that plain vLLM gives: 200 seeded requests in mixed batches.

    python eval/same_samples.py                                  the demo model, in float32
    python eval/same_samples.py --model smollm2 --dtype bfloat16 --csv eval/results/same_samples.csv

Requests at three temperatures, with top-k, top-p, min-p and all of them, stand in batches beside
greedy ones and sampled ones without a seed. Plain vLLM answers all of them twice, which says how
far its own samples depend on what is in the batch. So does an engine with Reprise:
first with little to draft from, then with each request's own answer among the near ones. Seeded
answers are compared token for token with the first ones of plain vLLM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from reprise.engine_ext.cli.worker_process import WorkerProcess, cause_of, end_workers
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.engine_environment import engine_environment
from reprise.eval.live.engine_turns import LiveError
from reprise.eval.live.live import model_path
from reprise.eval.live.live_worker import speculative_config
from reprise.eval.live.sampled_worker import SampledJob, SampledMessage, SampledOutcome
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.progress import Stage, progress_stages
from reprise.eval.report.results_csv import append_rows, check_rows_fit
from reprise.eval.report.tables import table_console, table_of

TEMPERATURES = (0.3, 0.8, 1.2)
LIMITS: dict[str, dict[str, Any]] = {
    "none": {},
    "top-k": {"top_k": 20},
    "top-p": {"top_p": 0.9},
    "min-p": {"min_p": 0.05},
    "all three": {"top_k": 50, "top_p": 0.95, "min_p": 0.02},
}
FIELDS = (
    "model", "dtype", "runner", "answers", "temperature", "limits", "requests", "tokens",
    "differing", "drafted", "accepted",
)  # fmt: skip
_OTHERS_EVERY = 6
_QUESTIONS = 32
_PASSES = 2


class Kind(NamedTuple):
    """A way to sample with a seed."""

    temperature: float
    limits: str


class Asked(NamedTuple):
    """One request; `kind` is None where no seed binds it."""

    question: str
    sampling: dict[str, Any]
    kind: Kind | None


def requests_of(num_seeded: int, max_tokens: int) -> list[Asked]:
    """Return so many seeded requests of all kinds, and beside them greedy and unseeded ones."""
    kinds = [Kind(temperature, limits) for temperature in TEMPERATURES for limits in LIMITS]
    rows = list(dict.fromkeys(row.prompt for row in make_demo_trace()))[:_QUESTIONS]
    asked: list[Asked] = []
    seeded = 0
    while seeded < num_seeded:
        question = rows[len(asked) % len(rows)]
        common = {"max_tokens": max_tokens}
        if len(asked) % _OTHERS_EVERY == _OTHERS_EVERY - 1:
            temperature = 0.0 if len(asked) % (2 * _OTHERS_EVERY) < _OTHERS_EVERY else 0.9
            asked.append(Asked(question, {**common, "temperature": temperature}, None))
            continue
        kind = kinds[seeded % len(kinds)]
        sampling = {"temperature": kind.temperature, "seed": 1000 + seeded, **LIMITS[kind.limits]}
        asked.append(Asked(question, {**common, **sampling}, kind))
        seeded += 1
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(measure, arguments, name="same_samples.py")


def measure(
    model: Annotated[
        str | None, typer.Option(help="A folder, or smollm2; else the demo model.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="As for vLLM.")] = "float32",
    seeded: Annotated[int, typer.Option(min=1, help="Requests with a seed.")] = 200,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 40,
    at_once: Annotated[int, typer.Option(min=1, help="Requests in a batch.")] = 8,
    csv: Annotated[Path | None, typer.Option(help="Append the rows to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Count the seeded samples that differ from plain vLLM's."""
    if csv:
        check_rows_fit(csv, fields=FIELDS)
    asked = requests_of(seeded, max_tokens)
    try:
        folder = model_path(model, quiet=quiet)
        outcomes = {}
        with progress_stages(quiet=quiet) as stage:
            for method in ("none", "reprise"):
                job = SampledJob(
                    model=folder,
                    dtype=dtype,
                    speculative_config=speculative_config(method, None),
                    questions=[one.question for one in asked],
                    samplings=[one.sampling for one in asked],
                    passes=_PASSES,
                    at_once=at_once,
                )
                outcomes[method] = _outcome(stage, method, job)
    except LiveError as error:
        raise InputError(str(error)) from error
    none, ours = outcomes["none"], outcomes["reprise"]
    rows = [
        {"model": Path(folder).name, "dtype": dtype, "runner": ours.runner, **row}
        for row in rows_of(asked, none, ours)
    ]
    if not any(ours.accepted):
        print("no drafted token was accepted: none was put to the test", file=sys.stderr)
    if csv:
        append_rows(csv, rows, fields=FIELDS)
    _print(rows, f"{Path(folder).name} in {dtype}, runner {ours.runner}, on {describe_machine()}")


def _outcome(stage: Stage, method: str, job: SampledJob) -> SampledOutcome:
    """Have an engine of its own answer.

    Raises:
        LiveError: it failed.
    """
    with_reprise = job.speculative_config is not None
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
    worker = WorkerProcess(
        "reprise.eval.live.sampled_worker",
        job,
        SampledMessage,
        engine_environment(environment, with_reprise=with_reprise),
    )
    try:
        with stage(f"{method}, engine that has started", 1) as tick:
            _take_in(worker, tick, lambda message: message.has_started)
        with stage(method, job.passes * len(job.questions)) as tick:
            ended = _take_in(worker, tick, lambda message: message.outcome is not None)
    finally:
        end_workers([worker])
    assert ended.outcome is not None
    return ended.outcome


def _take_in(
    worker: WorkerProcess[SampledMessage],
    tick: Callable[[], None],
    is_last: Callable[[SampledMessage], bool],
) -> SampledMessage:
    """Take in what a worker says, up to a message, which is returned.

    Raises:
        LiveError: it failed.
    """
    while (message := worker.messages.get()) is not None:
        if message.failure is not None:
            raise LiveError(cause_of(message.failure, worker.log_file))
        if is_last(message):
            return message
        tick()
    raise LiveError("an engine ended without a word")


def rows_of(
    asked: Sequence[Asked], none: SampledOutcome, ours: SampledOutcome
) -> Iterator[dict[str, Any]]:
    """Yield, for each pass, a row of all seeded answers and one for each kind."""
    expected = none.answers[0]
    passes = (
        ("plain vLLM, again", none, 1),
        ("with drafts", ours, 0),
        ("with drafts, repeated", ours, 1),
    )
    for name, outcome, number in passes:
        said = outcome.answers[number]
        by_kind: dict[Kind, list[tuple[list[int], list[int]]]] = {}
        for one, now, then in zip(asked, said, expected, strict=True):
            if one.kind is not None:
                by_kind.setdefault(one.kind, []).append((now, then))
        every = [pair for pairs in by_kind.values() for pair in pairs]
        counts = {"drafted": outcome.drafted[number], "accepted": outcome.accepted[number]}
        if outcome is none:
            counts = {}
        yield {"answers": name, "temperature": "all", "limits": "all", **_counted(every), **counts}
        for kind in sorted(by_kind, key=_order):
            cells = {"temperature": kind.temperature, "limits": kind.limits}
            yield {"answers": name, **cells, **_counted(by_kind[kind])}


def _order(kind: Kind) -> tuple[float, int]:
    return kind.temperature, list(LIMITS).index(kind.limits)


def _counted(pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, int]:
    return {
        "requests": len(pairs),
        "tokens": sum(len(now) for now, _ in pairs),
        "differing": sum(now != then for now, then in pairs),
    }


def _print(rows: Sequence[dict[str, Any]], title: str) -> None:
    headings = ("answers", "temperature", "limits", "differ", "tokens", "drafted", "accepted")
    table = table_of(*headings, title=title, num_words=3)
    for row in rows:
        table.add_row(
            row["answers"],
            f"{row['temperature']}",
            row["limits"],
            f"{row['differing']} of {row['requests']}",
            f"{row['tokens']:,}",
            f"{row.get('drafted', '')}",
            f"{row.get('accepted', '')}",
        )
    table_console().print(table)


if __name__ == "__main__":
    sys.exit(main())
