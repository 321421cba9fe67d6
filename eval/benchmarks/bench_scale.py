"""A cache bigger than a machine: what a small memory keeps of the gain, Milvus and Redis at size.

    python eval/benchmarks/bench_scale.py --only share --trace support.jsonl --tokenizer gpt2.json
    python eval/benchmarks/bench_scale.py --only duplicates --trace support.jsonl
    python eval/benchmarks/bench_scale.py --only store --answers 50000 --tenant 20000
    python eval/benchmarks/bench_scale.py --only model

Needs `pip install 'reprise[milvus,redis]'`. Milvus is Milvus Lite, which is written in Python: what
it is slow at, a Milvus cluster is not. A row for each figure is appended to a CSV.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from reprise.eval.benchmarks.retrieval.inputs import Figure
from reprise.eval.benchmarks.scale.paper_model import MEASURED, Fleet, model_figures
from reprise.eval.benchmarks.scale.small_memory import (
    duplicate_figures,
    small_memory_figures,
)
from reprise.eval.benchmarks.scale.store import store_figures
from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.live.milvus_server import is_milvus_installed
from reprise.eval.replay.token_rows import load_tokenizer
from reprise.eval.report.command_line import InputError, names_of, run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.results_csv import RESULTS, append_rows, check_rows_fit
from reprise.eval.report.tables import four_digits

SECTIONS = ("share", "duplicates", "store", "model")
RESULTS_FILE = RESULTS / "bench_scale.csv"
FIELDS = ("section", "figure", "value", "unit", "target")


def main(
    only: Annotated[
        str, typer.Option(metavar="LIST", help="Sections, separated by commas.")
    ] = ",".join(SECTIONS),
    answers: Annotated[int, typer.Option(min=1000, help="Stored, for `store`.")] = 50_000,
    tenant: Annotated[
        int | None,
        typer.Option(
            min=100, help="Of these, those of the tenant that is deleted at the end; a tenth."
        ),
    ] = None,
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, help="JSONL, for `share`, `duplicates`; may be repeated."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A tokenizer.json, a folder or a name; the demo model's.")
    ] = None,
    millions: Annotated[
        list[int], typer.Option(min=1, help="Answers, in millions, for `model`; may be repeated.")
    ] = [10, 100],  # noqa: B006 - typer copies it
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each trace.")] = None,
    seed: Annotated[int, typer.Option(help="Of whatever is random.")] = 0,
    output: Annotated[Path, typer.Option(help="Append rows to this file.")] = RESULTS_FILE,
) -> None:
    """Replay traces with a small memory, and time Milvus and Redis with many answers."""
    chosen = names_of("--only", only, SECTIONS)
    check_rows_fit(output, fields=FIELDS)
    if chosen != ["model"]:
        if not is_milvus_installed():
            raise InputError("no Milvus: pip install 'reprise[milvus]'")
        print(f"Measured on {describe_machine()}.")
    for name in chosen:
        figures: list[Figure]
        if name == "model":
            figures = [
                figure
                for million in millions
                for figure in model_figures(MEASURED, Fleet(answers=million * 10**6))
            ]
        elif name == "share":
            reader = load_tokenizer(tokenizer or demo_tokenizer_path())
            figures = small_memory_figures(trace or (), reader, limit=limit)
        elif name == "duplicates":
            reader = load_tokenizer(tokenizer or demo_tokenizer_path())
            figures = duplicate_figures(trace or (), reader, limit=limit)
        else:
            figures = store_figures(answers, tenant or answers // 10, seed=seed)
        for figure in figures:
            print(f"{figure.name:66} {figure.value:12.3f} {figure.unit:10} {figure.target}")
        if name != "model":  # which is no measurement
            append_rows(output, [_row(figure) for figure in figures], fields=FIELDS)


def _row(figure: Figure) -> dict[str, str]:
    return {
        "section": figure.section,
        "figure": figure.name,
        "value": four_digits(figure.value),
        "unit": figure.unit,
        "target": figure.target,
    }


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_scale.py"))
