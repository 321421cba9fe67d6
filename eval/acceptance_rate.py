"""Measure how much drafting saves on a trace: Reprise, its peers, and no drafting at all.

    python eval/acceptance_rate.py --trace my_requests.jsonl --methods none,ngram,suffix,reprise

With `--engine replay` recorded answers stand in for the model, which takes seconds and no engine;
with `--engine vllm` a real engine serves the trace with each method in turn. See docs/measuring.md.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reprise.engine_ext.answer_page.records import RecordedTrace
from reprise.engine_ext.answer_page.shown import ShownTrace, shown_traces
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
    refuse_live_only,
    replay_method,
)
from reprise.eval.replay.recording import recorded_trace
from reprise.eval.replay.results import Run, write_results
from reprise.eval.replay.run_options import RunOptions
from reprise.eval.replay.token_rows import TokenizerError, TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.replay.traces import TraceError, TraceRow, limit_rows, load_trace
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.frontier_plot import PlotError, check_plot, plot_svg, save_plot
from reprise.eval.report.html_report import write_html
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.progress import progress_stages
from reprise.eval.report.results_csv import check_rows_fit
from reprise.eval.report.results_table import print_results
from reprise.eval.report.runs_csv import FIELDS, append_runs
from reprise.retrieval.chat_logs.exchanges import left_out_in_words

DEMO_TRACE = "demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(measure, arguments, name="acceptance_rate.py")


def measure(
    traces: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", help="More traces.", hidden=True)
    ] = None,
    trace: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH...", help="Traces or chat logs, one or more; else the demo."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="LIST", help=f"Some of {','.join(ALL_METHODS)}; else all."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=-1, max=1, help="Of the semantic cache: the least cosine.")
    ] = 0.8,
    engine: Annotated[
        Literal["replay", "vllm"], typer.Option(help="Recorded answers, or real engines.")
    ] = "replay",
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_NAME", help="vllm: or smollm2; else the demo model."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="vllm: else float32 for the demo model, the model's own for others."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_NAME", help="replay: else the demo model's."),
    ] = None,
    num_speculative_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Upper bound on a draft; else each method's own."),
    ] = None,
    cost: Annotated[
        float,
        typer.Option(min=0, max=10, help="Of verifying a drafted token, in steps of its request."),
    ] = 0.02,
    concurrency: Annotated[int, typer.Option(min=1, help="vllm: requests at once.")] = 8,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="vllm: of an answer; else 512.")
    ] = None,
    take_turns: Annotated[
        bool,
        typer.Option(
            "--take-turns",
            help="vllm: all engines at once, one running at a time. Needs the memory for all of"
            " them; a slow minute of the machine then meets them all.",
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Requests of each trace, warm ones not counted.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of whatever is random.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write the results as JSON.")] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Append the results to a file of measured rows.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the results as a page.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="replay: write each method's frontier, .png or .svg.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no table.")] = False,
) -> None:
    """Measure how much drafting saves on a trace: Reprise, its peers, and no drafting at all."""
    _measure(
        RunOptions(
            engine=engine,
            traces=[*(trace or []), *(traces or [])],
            methods=methods,
            cost=cost,
            threshold=threshold,
            num_speculative_tokens=num_speculative_tokens,
            limit=limit,
            seed=seed,
            tokenizer=tokenizer,
            model=model,
            dtype=dtype,
            concurrency=concurrency,
            max_tokens=max_tokens,
            take_turns=take_turns,
            output=output,
            csv=csv,
            html=html,
            plot=plot,
            quiet=quiet,
        )
    )


def _measure(options: RunOptions) -> None:
    """Run, print and write what is asked for.

    Raises:
        InputError: something that was given cannot be used.
    """
    from reprise.eval.live.engine_turns import LiveError

    try:
        methods = parse_methods(options.methods)
        _check_outputs(options)
        traces = _load_traces(options)
        _quieten_libraries()
        frontiers_of: Callable[[], Frontiers | None] | None = None
        # To be shown on a page; without one nothing is recorded.
        recorded = {name: recorded_trace(rows) for name, rows in traces.items() if options.html}
        if options.engine == "vllm":
            from reprise.eval.live.live import run_live

            engine_config, runs = run_live(options, methods, traces, recorded)
            config = {**_config(options, methods, traces), **engine_config}
        else:
            refuse_live_only(methods)
            config, runs, frontiers_of = _run_replay(options, methods, traces, recorded)
    except (TraceError, MethodError, PlotError, TokenizerError, LiveError) as error:
        raise InputError(str(error)) from error
    try:
        # Before the frontiers, which take as long again: who stops them keeps these.
        _hand_over(options, config, runs)
        frontiers = None if frontiers_of is None else frontiers_of()
        _draw(options, config, runs, frontiers, recorded)
    except OSError as error:
        raise InputError(f"the results cannot be written: {error}") from error


def _hand_over(options: RunOptions, config: dict[str, Any], runs: list[Run]) -> None:
    """Print and write what came out.

    Raises:
        OSError: something cannot be written.
    """
    if not options.quiet:
        print_results(runs, cost=options.cost, machine=config["machine"])
    if options.output:
        write_results(options.output, config, runs)
    if options.csv:
        append_runs(options.csv, config, runs)


def _draw(
    options: RunOptions,
    config: dict[str, Any],
    runs: list[Run],
    frontiers: Frontiers | None,
    recorded: dict[str, RecordedTrace],
) -> None:
    """Write the plot and the page.

    Raises:
        OSError: something cannot be written.
    """
    if options.plot and frontiers is not None:
        save_plot(options.plot, frontiers, runs)
    if options.html:
        svg = plot_svg(frontiers, runs) if frontiers else None
        answers = _shown_answers(recorded, config.get("tokenizer") or config["model"])
        typed = {**config, "traces": list(options.traces)}
        write_html(options.html, typed, runs, plot_svg=svg, answers=answers)


def _shown_answers(
    recorded: dict[str, RecordedTrace], tokenizer: str
) -> list[tuple[str, ShownTrace]]:
    """Return nothing where the tokenizer cannot be read here: the engine has its own."""
    try:
        return shown_traces(recorded, load_tokenizer(tokenizer))
    except TokenizerError as error:
        print(f"the page shows no answers: {error}", file=sys.stderr)
        return []


def _run_replay(
    options: RunOptions,
    methods: Sequence[str],
    traces: dict[str, list[TraceRow]],
    recorded: dict[str, RecordedTrace],
) -> tuple[dict[str, Any], list[Run], Callable[[], Frontiers | None]]:
    tokenizer_name = options.tokenizer or str(demo_tokenizer_path())
    tokenizer = load_tokenizer(tokenizer_name)
    settings = ReplaySettings(
        cost=options.cost,
        threshold=options.threshold,
        num_speculative_tokens=options.num_speculative_tokens,
    )
    config = {**_config(options, methods, traces), "tokenizer": tokenizer_name}
    runs: list[Run] = []
    rows_of = {trace: tokenize_rows(rows, tokenizer) for trace, rows in traces.items()}
    with progress_stages(quiet=options.quiet) as stage:
        if needs_embedder(methods):
            with stage("loading the embedding model", 1):
                config["embedding_model"] = settings.embedder.name
        for trace, rows in rows_of.items():
            for method in methods:
                with stage(f"{trace}: {method}", _num_timed(rows) * num_replays(method)) as tick:
                    run, setting = replay_method(
                        method,
                        trace,
                        rows,
                        settings,
                        on_request=tick,
                        recorded=recorded.get(trace),
                    )
                runs.append(run)
                if setting is not None:
                    config.setdefault("suffix_best", {})[trace] = setting._asdict()
    return config, runs, partial(_frontiers_of, options, rows_of, methods, settings)


def _frontiers_of(
    options: RunOptions,
    rows_of: Mapping[str, Sequence[TokenRow]],
    methods: Sequence[str],
    settings: ReplaySettings,
) -> Frontiers | None:
    """Return the frontiers of all traces; None: there are none, or nothing shows them."""
    if not (options.plot or options.html):
        return None
    frontiers: Frontiers = {}
    with progress_stages(quiet=options.quiet) as stage:
        for trace, rows in rows_of.items():
            num_requests = _num_timed(rows) * num_frontier_replays(methods)
            with stage(f"{trace}: frontier", num_requests) as tick:
                frontiers[trace] = trace_frontiers(trace, rows, methods, settings, on_request=tick)
    return frontiers if any(frontiers.values()) else None


def _num_timed(rows: Sequence[TokenRow]) -> int:
    return sum(not row.warm for row in rows)


def _load_traces(options: RunOptions) -> dict[str, list[TraceRow]]:
    """Name to rows; at most `limit` rows of each beside the warm ones."""
    if not options.traces:
        loaded = {DEMO_TRACE: make_demo_trace()}
    else:
        loaded = {}
        for path in options.traces:
            name = Path(path).stem
            # Two files of one name in different folders stay apart by their whole paths.
            loaded[path if name in loaded else name] = _load_trace(path, quiet=options.quiet)
    return {name: limit_rows(rows, options.limit) for name, rows in loaded.items()}


def _load_trace(path: str, *, quiet: bool) -> list[TraceRow]:
    empty: list[None] = []
    rows = load_trace(path, on_empty=partial(empty.append, None))
    if empty and not quiet:
        print(f"{path}: {left_out_in_words(len(empty))}", file=sys.stderr)
    return rows


def _config(
    options: RunOptions, methods: Sequence[str], traces: dict[str, list[TraceRow]]
) -> dict[str, Any]:
    return {
        "engine": options.engine,
        "machine": describe_machine(),
        "traces": list(options.traces or traces),
        "methods": list(methods),
        "cost": options.cost,
        "threshold": options.threshold,
        "num_speculative_tokens": options.num_speculative_tokens,
        "limit": options.limit,
        "seed": options.seed,
    }


def _check_outputs(options: RunOptions) -> None:
    """Find out now, not after minutes of work, that a result cannot be written."""
    if options.plot:
        check_plot(options.plot)
        if options.engine == "vllm":
            raise PlotError("--plot needs many settings of each method, so --engine replay")
    if options.html and options.engine == "replay":
        check_plot(None)
    named = {Path(trace).resolve(): "a trace" for trace in options.traces}
    for path in filter(None, (options.output, options.csv, options.html, options.plot)):
        whole = path.resolve()
        if not whole.parent.is_dir():
            raise InputError(f"{path}: its folder does not exist")
        if whole.is_dir():
            raise InputError(f"{path}: is a folder")
        if not os.access(whole if whole.exists() else whole.parent, os.W_OK):
            raise InputError(f"{path}: cannot be written to")
        if whole in named and not whole.is_char_device():
            raise InputError(f"{path}: is named as {named[whole]} too")
        named[whole] = "another result"
    if options.csv:
        check_rows_fit(options.csv, fields=FIELDS)


def _quieten_libraries() -> None:
    """Keep the table readable: libraries below say only what is wrong."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("sentence_transformers", "transformers", "httpx", "faiss", "vllm"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
