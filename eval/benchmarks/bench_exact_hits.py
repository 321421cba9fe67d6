"""Exact hits over HTTP, from memory and from a tier, and what looking for them costs a miss.

    python eval/benchmarks/bench_exact_hits.py               every section, on the demo model
    python eval/benchmarks/bench_exact_hits.py --only hits   one of them

Sections: `look-ups` (one look-up in SQLite and in Redis, in this process, as a request waits for
it, within the default budget), `hits` (each question is generated, repeated by the same server from
memory, then by two others from the tier, by one that trusts it and by one that verifies what it
finds, which then generates once more with the same answer as a draft: after a restart with SQLite,
beside the first with Redis), `miss` (throughput of what nobody has asked before: exact hits off, in
memory, and in memory and Redis, in rounds, forwards and backwards by turns, while the other servers
stand still) and `pairs` (what a request waits for: each miss beside the same request with
`x-reprise-cache: off`, which is not looked up, on the same server, one after the other, either one
first by turns). Answers are compared before anything is counted. A section's rows are appended
to a CSV as soon as it is through.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from reprise.eval.benchmarks.exact_hits.hits import TICKS, bench_hits
from reprise.eval.benchmarks.exact_hits.look_ups import bench_look_ups
from reprise.eval.benchmarks.exact_hits.misses import MISS_KINDS, bench_miss, bench_pairs
from reprise.eval.benchmarks.exact_hits.rows import FIELDS
from reprise.eval.demo_data.demo_model import demo_model_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.report.command_line import names_of, run_command
from reprise.eval.report.progress import Stage, progress_stages
from reprise.eval.report.results_csv import RESULTS, append_rows, check_rows_fit

SECTIONS = ("look-ups", "hits", "miss", "pairs")
RESULTS_FILE = RESULTS / "bench_exact_hits.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections asked for."""
    return run_command(measure, arguments, name="bench_exact_hits.py")


def measure(
    only: Annotated[
        str, typer.Option(metavar="LIST", help="Sections, separated by commas.")
    ] = ",".join(SECTIONS),
    requests: Annotated[int, typer.Option(min=4, help="Questions of one run, at most.")] = 48,
    look_ups: Annotated[int, typer.Option(min=10, help="Of the section `look-ups`.")] = 1000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Of the section `miss`.")] = 15,
    concurrency: Annotated[int, typer.Option(min=1, help="Of the section `miss`.")] = 8,
    pairs: Annotated[int, typer.Option(min=1, help="Of the section `pairs`.")] = 300,
    csv: Annotated[Path, typer.Option(help="Append rows to this file.")] = RESULTS_FILE,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> int:
    """Measure exact hits on real servers with the demo model."""
    sections = names_of("--only", only, SECTIONS)
    check_rows_fit(csv, fields=FIELDS)
    model = str(demo_model_path())
    questions = list(dict.fromkeys(row.prompt for row in make_demo_trace()))[:requests]

    def look_up(stage: Stage) -> list[dict[str, Any]]:
        with stage("look-ups", 4) as tick:
            return bench_look_ups(model, look_ups, tick)

    def hit(stage: Stage) -> list[dict[str, Any]]:
        with stage("hits", TICKS) as tick:
            return bench_hits(model, questions, max_tokens, tick)

    def miss(stage: Stage) -> list[dict[str, Any]]:
        with stage("miss", len(MISS_KINDS) * (rounds + 1)) as tick:
            return bench_miss(
                model, questions, max_tokens, tick, rounds=rounds, concurrency=concurrency
            )

    def pair(stage: Stage) -> list[dict[str, Any]]:
        with stage("pairs", 2 * pairs) as tick:
            return bench_pairs(model, questions, max_tokens, tick, pairs=pairs)

    with progress_stages(quiet=quiet) as stage:
        for name, bench in zip(SECTIONS, (look_up, hit, miss, pair), strict=True):
            if name in sections:
                rows = bench(stage)
                append_rows(csv, rows, fields=FIELDS)
                _show(rows)
    return 0


def _show(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        name = f"{row['section']}: {row['from']}, {row['name']}"
        typer.echo(f"{name:60} {row['value']:>10} {row['unit']:9} {row.get('note', '')}")


if __name__ == "__main__":
    sys.exit(main())
