"""Figures of serving, from real OpenAI servers: exact hits, what a miss costs, methods compared.

    python eval/benchmarks/bench_serving.py   every section, on the demo model
    python eval/benchmarks/bench_serving.py --only exact,miss   these
    python eval/benchmarks/bench_serving.py --model FOLDER --trace FILE.jsonl --warm 100
    python eval/benchmarks/bench_serving.py --vllm-bench   vLLM's own `bench serve` as well

Sections: `exact` (time to first token and speed of exact hits), `miss` (throughput of what is not
in the cache against plain vLLM), `methods` (throughput and latency by method and concurrency, and
near answers in time), `repeats` (every question comes twice: exact hits off, in memory, in memory
and Redis), `engines` (the same questions on one engine, on two data parallel ones, and behind two
API server processes). The servers that are compared run side by side and are asked in rounds,
forwards and backwards by turns, while the others stand still. Rows are appended to a CSV.
"""

import asyncio
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from reprise.eval.benchmarks.serving.load import (
    MODEL_NAME,
    SPECULATIVE,
    Server,
    alone,
    ask_all,
    running,
)
from reprise.eval.benchmarks.serving.rounds import (
    Contender,
    alternate,
    figure_row,
    figures_of,
    p50_ms,
    ratio,
    texts,
    tokens_per_s,
)
from reprise.eval.benchmarks.serving.servers import ENGINES, EXACT_HITS, Kind, started
from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.traces import TraceError, TraceRow, load_trace
from reprise.eval.report.command_line import InputError, counts_of, names_of, run_command
from reprise.eval.report.results_csv import RESULTS, append_rows, check_rows_fit
from reprise.eval.report.serving_report import save_plots, show

SECTIONS = ("exact", "miss", "methods", "repeats", "engines")
RESULTS_FILE = RESULTS / "bench_serving.csv"
FIELDS = (
    "model", "requests", "section", "method", "concurrency", "name", "value", "unit", "note",
)  # fmt: skip
# Every request generates, and its answer joins: drafting is measured, not repetition.
_GENERATE = {"x-reprise-cache": "refresh"}
_GENERATE_WITHOUT_DRAFTS = {**_GENERATE, "x-reprise-drafts": "off"}


class Settings(NamedTuple):
    """What the command line asked for."""

    model: str
    dtype: str
    methods: Sequence[str]
    concurrency: Sequence[int]
    requests: int
    warm: int
    max_tokens: int
    rounds: int
    vllm_bench: bool


def bench_exact(settings: Settings, rows: list[TraceRow]) -> list[dict[str, Any]]:
    """Exact hits against generating, one request at a time."""
    questions = [row.prompt for row in rows][: settings.requests]
    asked: dict[str, Any] = {"concurrency": 1, "max_tokens": settings.max_tokens}
    with running(settings.model, "reprise", dtype=settings.dtype) as (server,):
        asyncio.run(ask_all(server, questions[:4], **asked, headers=_GENERATE))
        generated, _ = asyncio.run(
            ask_all(server, questions, **asked, headers=_GENERATE_WITHOUT_DRAFTS)
        )
        before = server.hit_counts().get("exact", 0)
        hits, _ = asyncio.run(ask_all(server, questions, **asked, headers={}))
        num_exact = server.hit_counts().get("exact", 0) - before
    if num_exact != len(questions):
        raise RuntimeError(f"expected {len(questions)} exact hits, came {num_exact}")
    changed = sum(hit.text != made.text for hit, made in zip(hits, generated, strict=True))
    if changed:
        raise RuntimeError(f"{changed} of {len(hits)} exact hits differ from what was generated")
    return [
        figure_row(
            "exact", "first token of a hit, p50", p50_ms([hit.first_token_s for hit in hits])
        ),
        figure_row("exact", "whole hit, p50", p50_ms([hit.whole_s for hit in hits])),
        figure_row("exact", "whole generation, p50", p50_ms([made.whole_s for made in generated])),
        figure_row(
            "exact",
            "generation / hit, median",
            statistics.median(
                made.whole_s / hit.whole_s for made, hit in zip(generated, hits, strict=True)
            ),
            unit="x",
        ),
        figure_row("exact", "identical answers", 100.0, unit="%"),
    ]


def bench_miss(settings: Settings, rows: list[TraceRow]) -> list[dict[str, Any]]:
    """Throughput of misses against plain vLLM.

    `drafts off`: a server of ours that looks up, generates and stores. `nothing to reuse`: all of
    it, search and drafts included, each request in a namespace that has seen nothing.
    """
    questions = [row.prompt for row in rows][: settings.requests]
    found = []
    with running(settings.model, "none", "reprise", dtype=settings.dtype) as (plain, ours):
        contenders = (
            Contender("plain vLLM", plain, {}),
            Contender("drafts off", ours, _GENERATE_WITHOUT_DRAFTS),
            Contender("nothing to reuse", ours, {}),
        )
        for each in contenders:
            asyncio.run(ask_all(each.server, questions, concurrency=8, max_tokens=8, headers={}))
        for concurrency in settings.concurrency:
            questions_by_round = [questions] * settings.rounds
            rounds = alternate(
                contenders,
                questions_by_round,
                concurrency=concurrency,
                max_tokens=settings.max_tokens,
                own_salts=True,
            )
            wanted = texts(rounds[0]["plain vLLM"])
            for by_name in rounds:
                for name, given in by_name.items():
                    if texts(given) != wanted:
                        raise RuntimeError(
                            f"at concurrency {concurrency} answers of {name!r} differ from plain "
                            "vLLM's"
                        )
            for each in contenders:
                row = tokens_per_s("miss", "throughput, median", rounds, each.name)
                found.append({**row, "method": each.name, "concurrency": concurrency})
                if each.server is not plain:
                    row = ratio("miss", rounds, each.name, "plain vLLM")
                    found.append({**row, "method": each.name, "concurrency": concurrency})
    return found


def bench_methods(settings: Settings, rows: list[TraceRow]) -> list[dict[str, Any]]:
    """Each method on a warm server of its own; each round has questions of its own."""
    warm = [row.prompt for row in rows if row.warm]
    fresh = warm[settings.warm :] + [row.prompt for row in rows if not row.warm]
    warm = warm[: settings.warm] or fresh[:4]
    num_rounds = settings.rounds * len(settings.concurrency)
    if len(fresh) < num_rounds:
        raise RuntimeError(
            f"expected a question for each of {num_rounds} rounds beside the {len(warm)} that fill "
            f"the cache, came {len(fresh)}"
        )
    found = []
    with running(settings.model, *settings.methods, dtype=settings.dtype) as servers:
        contenders = [
            Contender(method, server, _GENERATE)
            for method, server in zip(settings.methods, servers, strict=True)
        ]
        alternate(contenders, [warm], concurrency=8, max_tokens=settings.max_tokens)
        questions_by_round = [fresh[n::num_rounds][: settings.requests] for n in range(num_rounds)]
        for index, concurrency in enumerate(settings.concurrency):
            own = questions_by_round[index :: len(settings.concurrency)]
            before = {each.name: _near_answers(each) for each in contenders}
            rounds = alternate(
                contenders, own, concurrency=concurrency, max_tokens=settings.max_tokens
            )
            for each in contenders:
                figures = figures_of("methods", rounds, each.name, settings.methods[0])
                for name, share in _shares_in_time(before[each.name], _near_answers(each)).items():
                    figures.append(figure_row("methods", name, share, unit="%"))
                found += [
                    {**row, "method": each.name, "concurrency": concurrency} for row in figures
                ]
        if settings.vllm_bench:
            for each in contenders:
                with alone(each.server, servers):
                    _run_vllm_bench(each.server, settings)
    return found


def bench_repeats(settings: Settings, rows: list[TraceRow]) -> list[dict[str, Any]]:
    """Traffic in which every question comes twice, with exact hits off, in memory, in Redis too."""
    return _on_servers("repeats", EXACT_HITS, settings, rows)


def bench_engines(settings: Settings, rows: list[TraceRow]) -> list[dict[str, Any]]:
    """The same traffic on servers of several engines or several processes."""
    return _on_servers("engines", ENGINES, settings, rows)


def _on_servers(
    section: str, kinds: Mapping[str, Kind], settings: Settings, rows: list[TraceRow]
) -> list[dict[str, Any]]:
    """Each question twice, a round's worth of others between; each round has its own."""
    questions = list(dict.fromkeys(row.prompt for row in rows))
    num_rounds = settings.rounds * len(settings.concurrency)
    per_round = max(1, settings.requests // 2)
    if len(questions) < num_rounds + 1:
        raise RuntimeError(f"expected a question for each of {num_rounds} rounds")
    warm, *questions = questions
    found = []
    with started(settings.model, kinds, dtype=settings.dtype) as servers:
        contenders = [Contender(name, server, {}) for name, server in servers.items()]
        alternate(contenders, [[warm] * 4], concurrency=1, max_tokens=settings.max_tokens)
        for index, concurrency in enumerate(settings.concurrency):
            numbers = range(index, num_rounds, len(settings.concurrency))
            own = [questions[number::num_rounds][:per_round] * 2 for number in numbers]
            rounds = alternate(
                contenders, own, concurrency=concurrency, max_tokens=settings.max_tokens
            )
            for each in contenders:
                figures = figures_of(section, rounds, each.name, contenders[0].name)
                common = {"method": each.name, "concurrency": concurrency}
                found += [{**row, **common} for row in figures]
    return found


def _near_answers(contender: Contender) -> dict[str, Any] | None:
    """Of a server of ours: how many requests had near answers in time so far."""
    return contender.server.worker() if contender.name == "reprise" else None


def _shares_in_time(
    before: dict[str, Any] | None, after: dict[str, Any] | None
) -> dict[str, float]:
    """Of requests that had near answers at their first decode step, or did not know yet: per cent
    of the former, by who found them."""
    if before is None or after is None:
        return {}
    found = {
        found_by: after["near_answers_in_time"][found_by] - count
        for found_by, count in before["near_answers_in_time"].items()
    }
    late = after["near_answers_late"] - before["near_answers_late"]
    total = max(1, sum(found.values()) + late)
    shares = {f"near answers in time, by {name}": 100.0 * n / total for name, n in found.items()}
    return {"near answers in time": sum(shares.values()), **shares}


def _run_vllm_bench(server: Server, settings: Settings) -> None:
    """vLLM's own load generator, its report straight to the terminal."""
    command = "from vllm.benchmarks.serve import add_cli_args, main\n"
    command += "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    command += "parser = FlexibleArgumentParser()\nadd_cli_args(parser)\nmain(parser.parse_args())"
    arguments = ["--base-url", server.url, "--model", MODEL_NAME, "--tokenizer", settings.model]
    arguments += ["--dataset-name", "random", "--random-input-len", "64", "--temperature", "0"]
    arguments += ["--random-output-len", "64", "--num-prompts", str(settings.requests)]
    subprocess.run([sys.executable, "-c", command, *arguments], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections asked for."""
    return run_command(measure, arguments, name="bench_serving.py")


def measure(
    model: Annotated[
        str | None, typer.Option(metavar="PATH_OR_NAME", help="Else the demo model.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Else float32 for the demo model, auto for others.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="JSONL; else the demo trace.")] = None,
    only: Annotated[
        str, typer.Option(metavar="LIST", help="Sections, separated by commas.")
    ] = ",".join(SECTIONS),
    methods: Annotated[
        str, typer.Option(metavar="LIST", help="For the section `methods`.")
    ] = ",".join(SPECULATIVE),
    concurrency: Annotated[
        str, typer.Option(metavar="LIST", help="Requests at once, one run for each number.")
    ] = "1,8,32",
    requests: Annotated[int, typer.Option(min=1, help="Of one run, at most.")] = 64,
    warm: Annotated[int, typer.Option(min=0, help="Requests that fill the cache, at most.")] = 400,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Of each concurrency.")] = 5,
    csv: Annotated[Path, typer.Option(help="Append rows to this file.")] = RESULTS_FILE,
    plot: Annotated[
        Path | None, typer.Option(help="Write the section `methods` to PLOT.png and PLOT.svg.")
    ] = None,
    vllm_bench: Annotated[
        bool, typer.Option("--vllm-bench", help="Run vLLM's own `bench serve` as well.")
    ] = False,
) -> int:
    """Measure real servers: exact hits, what a miss costs, and methods against each other."""
    if model is None:
        model, dtype = str(demo_model_path()), dtype or DEMO_DTYPE
    elif Path(model).is_dir():
        model = str(Path(model).resolve())  # the servers start in a folder of their own
    settings = Settings(
        model=model,
        dtype=dtype or "auto",
        methods=names_of("--methods", methods, tuple(SPECULATIVE)),
        concurrency=counts_of("--concurrency", concurrency),
        requests=requests,
        warm=warm,
        max_tokens=max_tokens,
        rounds=rounds,
        vllm_bench=vllm_bench,
    )
    sections = {
        "exact": bench_exact,
        "miss": bench_miss,
        "methods": bench_methods,
        "repeats": bench_repeats,
        "engines": bench_engines,
    }
    chosen = names_of("--only", only, SECTIONS)
    check_rows_fit(csv, fields=FIELDS)
    try:
        rows = make_demo_trace() if trace is None else load_trace(trace)
    except TraceError as error:
        raise InputError(str(error)) from error
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            measured = sections[name](settings, rows)
        except RuntimeError as error:
            print(f"bench_serving.py: {name}: {error}", file=sys.stderr)
            return 1
        show(measured)
        common = {"model": Path(model).name, "requests": requests}
        append_rows(csv, [common | _rounded(row) for row in measured], fields=FIELDS)
        if plot is not None and name == "methods":
            save_plots(plot, measured)
    return 0


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"value": f"{row['value']:.6g}"}


if __name__ == "__main__":
    sys.exit(main())
