"""Measure how much drafting saves on a trace: Reprise, its peers, and no drafting at all.

    python eval/acceptance_rate.py --trace my_requests.jsonl --methods none,ngram,suffix,reprise

With `--engine replay` recorded answers stand in for the model, which takes seconds and no engine;
with `--engine vllm` a real engine serves the trace with each method in turn. See docs/measuring.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.frontier import Frontiers, num_frontier_replays, trace_frontiers
from reprise.eval.replay.methods import (
    ALL_METHODS,
    MethodError,
    ReplaySettings,
    needs_embedder,
    num_replays,
    parse_methods,
    replay_method,
)
from reprise.eval.replay.results import Run, write_results
from reprise.eval.replay.results_table import print_results
from reprise.eval.replay.token_rows import TokenizerError, TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.replay.traces import TraceError, TraceRow, load_trace
from reprise.eval.report.frontier_plot import PlotError, check_plot, plot_svg, save_plot
from reprise.eval.report.html_report import write_html
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.progress import Stage, progress_stages

DEMO_TRACE = "demo"


class OneLineParser(argparse.ArgumentParser):
    """Errors are one line on standard error, and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Print the line and leave."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        methods = parse_methods(options.methods)
        _check_outputs(options)
        traces = _load_traces(options.trace, options.limit)
        _quieten_libraries()
        if options.engine == "vllm":
            from reprise.eval.live.engine_turns import LiveError
            from reprise.eval.live.live import run_live

            try:
                engine_config, runs = run_live(options, methods, traces)
            except LiveError as error:
                parser.error(str(error))
            config = {**_config(options, methods, traces), **engine_config}
            frontiers: Frontiers | None = None
        else:
            config, runs, frontiers = _run_replay(options, methods, traces)
    except (TraceError, MethodError, PlotError, TokenizerError) as error:
        parser.error(str(error))
    if not options.quiet:
        print_results(runs, cost=options.cost, machine=config["machine"])
    if options.output:
        write_results(options.output, config, runs)
    if options.plot and frontiers is not None:
        save_plot(options.plot, frontiers, runs)
    if options.html:
        svg = plot_svg(frontiers, runs) if frontiers else None
        write_html(options.html, config, runs, plot_svg=svg)
    return 0


def _run_replay(
    options: argparse.Namespace, methods: Sequence[str], traces: dict[str, list[TraceRow]]
) -> tuple[dict[str, Any], list[Run], Frontiers | None]:
    tokenizer_name = options.tokenizer or str(demo_tokenizer_path())
    tokenizer = load_tokenizer(tokenizer_name)
    settings = ReplaySettings(
        cost=options.cost,
        threshold=options.threshold,
        num_speculative_tokens=options.num_speculative_tokens,
    )
    config = {**_config(options, methods, traces), "tokenizer": tokenizer_name}
    runs: list[Run] = []
    frontiers: Frontiers = {}
    with progress_stages(quiet=options.quiet) as stage:
        if needs_embedder(methods):
            with stage("loading the embedding model", 1):
                config["embedding_model"] = settings.embedder.name
        for trace, trace_rows in traces.items():
            rows = tokenize_rows(trace_rows, tokenizer)
            timed = sum(not row.warm for row in rows)
            for method in methods:
                with stage(f"{trace}: {method}", timed * num_replays(method)) as tick:
                    run, setting = replay_method(method, trace, rows, settings, on_request=tick)
                runs.append(run)
                if setting is not None:
                    config.setdefault("suffix_best", {})[trace] = setting._asdict()
            if options.plot or options.html:
                frontiers[trace] = _frontiers_of(trace, rows, timed, methods, settings, stage)
    return config, runs, frontiers if any(frontiers.values()) else None


def _frontiers_of(
    trace: str,
    rows: Sequence[TokenRow],
    timed: int,
    methods: Sequence[str],
    settings: ReplaySettings,
    stage: Stage,
) -> dict[str, Any]:
    with stage(f"{trace}: frontier", timed * num_frontier_replays(methods)) as tick:
        return trace_frontiers(trace, rows, methods, settings, on_request=tick)


def _load_traces(paths: Sequence[str] | None, limit: int | None) -> dict[str, list[TraceRow]]:
    """Name to rows; at most `limit` rows of each beside the warm ones."""
    if paths is None:
        loaded = {DEMO_TRACE: make_demo_trace()}
    else:
        loaded = {}
        for path in paths:
            name = Path(path).stem
            # Two files of one name in different folders stay apart by their whole paths.
            loaded[path if name in loaded else name] = load_trace(path)
    return {name: limit_rows(rows, limit) for name, rows in loaded.items()}


def limit_rows(rows: Sequence[TraceRow], limit: int | None) -> list[TraceRow]:
    """All warm rows, and the first `limit` others."""
    kept, timed = [], 0
    for row in rows:
        timed += not row.warm
        if row.warm or limit is None or timed <= limit:
            kept.append(row)
    return kept


def _config(
    options: argparse.Namespace, methods: Sequence[str], traces: dict[str, list[TraceRow]]
) -> dict[str, Any]:
    return {
        "engine": options.engine,
        "machine": describe_machine(),
        "traces": options.trace or list(traces),
        "methods": list(methods),
        "cost": options.cost,
        "threshold": options.threshold,
        "num_speculative_tokens": options.num_speculative_tokens,
        "limit": options.limit,
        "seed": options.seed,
    }


def _check_outputs(options: argparse.Namespace) -> None:
    """Find out now, not after minutes of work, that a result cannot be written."""
    if options.plot:
        check_plot(options.plot)
        if options.engine == "vllm":
            raise PlotError("--plot needs many settings of each method, so --engine replay")
    if options.html and options.engine == "replay":
        check_plot(None)
    for path in (options.output, options.html, options.plot):
        if path and not Path(path).resolve().parent.is_dir():
            raise PlotError(f"{path}: its folder does not exist")


def _quieten_libraries() -> None:
    """Keep the table readable: libraries below say only what is wrong."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("sentence_transformers", "transformers", "httpx", "faiss", "vllm"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="acceptance_rate.py",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--trace", nargs="+", metavar="PATH", help="JSONL traces; without, the demo trace")
    add("--methods", metavar="LIST", help=f"some of {','.join(ALL_METHODS)}")
    add(
        "--threshold", type=_between(-1, 1), default=0.8, metavar="S", help="semantic-cache: cosine"
    )
    add("--engine", choices=("replay", "vllm"), default="replay", help="recorded answers or vLLM")
    add("--model", metavar="PATH_OR_NAME", help="for vllm; without, the demo model")
    add(
        "--dtype",
        metavar="DTYPE",
        help="for vllm; without, float32 for the demo model, else the model's own",
    )
    add("--tokenizer", metavar="PATH_OR_NAME", help="for replay; without, the demo model's")
    add("--num-speculative-tokens", type=_count, metavar="N", help="upper bound on a draft")
    add("--cost", type=_between(0, 10), default=0.02, metavar="C", help="of one drafted token")
    add("--concurrency", type=_count, default=8, metavar="N", help="vllm: requests at once")
    add(
        "--take-turns",
        action="store_true",
        help="vllm: all engines at once, one running at a time: needs the memory for all of them,"
        " and no slow minute of the machine meets one of them alone",
    )
    add("--limit", type=_count, metavar="N", help="requests of each trace, warm ones not counted")
    add("--seed", type=int, default=0, metavar="N", help="of whatever is random")
    add("--output", metavar="FILE.json", help="write the results as JSON")
    add("--html", metavar="FILE.html", help="write the results as a page")
    add("--plot", metavar="FILE", help="write the frontier of each method as .png or .svg")
    add("--quiet", action="store_true", help="no progress, no table")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {number}")
    return number


def _between(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number in {low}..{high}, got {text}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
