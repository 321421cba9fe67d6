"""Conversations of several rounds against any OpenAI-compatible server: latency, and reuse.

    python eval/multi_round_qa.py --base-url http://127.0.0.1:8000 --model my-model \
        --num-users 20 --num-rounds 5 --qps 2

Users share a `system` prompt; each has a history and questions of its own. Times are those of the
client. What was found in caches, kept by pins, and accepted of drafts comes from the server's
`/metrics`, where it is a vLLM's, and counts all of its requests meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from reprise.eval.live.multi_round import Answered, Counted, Workload, counters, run
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.frontier_plot import PlotError, check_plot
from reprise.eval.report.progress import progress_stages
from reprise.eval.report.tables import table_console, table_of

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def quantiles_ms(times_s: Sequence[float]) -> dict[str, float]:
    """Return p50, p90 and p99 in milliseconds: each a time that was measured."""
    ordered = sorted(times_s)
    return {
        name: round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
        for name, share in _QUANTILES.items()
    }


def report_of(
    workload: Workload, answered: Sequence[Answered], counted: dict[str, float]
) -> dict[str, Any]:
    """Return what is written as JSON."""
    wall_s = max(one.began_s + one.whole_s for one in answered)
    rounds = [
        {"round": number + 1, "first_token_ms": quantiles_ms([one.first_token_s for one in of])}
        for number in range(workload.num_rounds)
        if (of := [one for one in answered if one.round == number])
    ]
    config = {**workload._asdict(), "headers": sorted(workload.headers)}
    return {
        "version": 1,
        "config": config,
        "requests": len(answered),
        "wall_s": round(wall_s, 3),
        "requests_per_s": round(len(answered) / wall_s, 3),
        "output_tokens_per_s": round(sum(one.output_tokens for one in answered) / wall_s, 3),
        "first_token_ms": quantiles_ms([one.first_token_s for one in answered]),
        "token_ms": quantiles_ms([one.token_s for one in answered if one.output_tokens > 1] or [0]),
        "rounds": rounds,
        "server": counted,
        "answers": [one._asdict() for one in answered],
    }


def _print(report: dict[str, Any]) -> None:
    title = f"{report['requests']} requests in {report['wall_s']:.1f} s"
    table = table_of("", *_QUANTILES, title=title)
    rows = {
        "first token, ms": report["first_token_ms"],
        "each further token, ms": report["token_ms"],
    }
    for each in report["rounds"]:
        rows[f"first token in round {each['round']}, ms"] = each["first_token_ms"]
    for name, values in rows.items():
        table.add_row(name, *(f"{values[quantile]:.1f}" for quantile in _QUANTILES))
    console = table_console()
    console.print(table)
    console.print(
        f"{report['requests_per_s']:.2f} requests and {report['output_tokens_per_s']:.1f} output "
        "tokens a second"
    )
    for name, count in report["server"].items():
        console.print(f"{name}: {count:.0f}")


def save_plot(path: Path, report: dict[str, Any]) -> None:
    """Draw the time to first token of each round: p50 and p90."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    numbers = [each["round"] for each in report["rounds"]]
    for name in ("p50", "p90"):
        values = [each["first_token_ms"][name] for each in report["rounds"]]
        axes.plot(numbers, values, marker="o", label=name)
    axes.set(xlabel="round", ylabel="time to first token, ms", xticks=numbers, ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the workload."""
    return run_command(measure, arguments, name="multi_round_qa.py")


def measure(
    model: Annotated[str, typer.Option(help="As the server calls it.")],
    base_url: Annotated[str, typer.Option(help="Of the server.")] = "http://127.0.0.1:8000",
    num_users: Annotated[int, typer.Option(min=1)] = 20,
    num_rounds: Annotated[int, typer.Option(min=1)] = 5,
    qps: Annotated[float, typer.Option(min=0.001, help="Requests a second.")] = 2.0,
    shared_system_prompt: Annotated[
        int, typer.Option(min=0, help="Words of the system prompt that all share.")
    ] = 250,
    user_history_prompt: Annotated[
        int, typer.Option(min=0, help="Words of each user's own history.")
    ] = 100,
    answer_len: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 32,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="If it wants one.")] = "",
    seed: Annotated[int, typer.Option(help="Of all that is made up.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write JSON to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png or .svg.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> int:
    """Measure conversations of several rounds against a server."""
    if plot is not None:
        try:
            check_plot(plot)
        except PlotError as error:
            raise InputError(str(error)) from error
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    workload = Workload(
        base_url, model, num_users, num_rounds, qps, shared_system_prompt, user_history_prompt,
        answer_len, headers, seed,
    )  # fmt: skip
    with progress_stages(quiet=quiet) as stage, stage("requests", num_users * num_rounds) as tick:
        try:
            answered, counted = asyncio.run(_run(workload, tick))
        except RuntimeError as error:
            raise InputError(str(error)) from error
    report = report_of(workload, answered, counted.counts)
    _print(report)
    if counted.problem:
        print(
            f"nothing is known of the server's caches and drafts: {counted.problem}",
            file=sys.stderr,
        )
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        save_plot(plot, report)
    return 0


async def _run(workload: Workload, tick: Any) -> tuple[list[Answered], Counted]:
    before = await counters(workload.base_url)
    answered = await run(workload, tick)
    after = await counters(workload.base_url)
    # A counter that had counted nothing may not have been there.
    more = {name: count - before.counts.get(name, 0.0) for name, count in after.counts.items()}
    return answered, Counted(more, after.problem)


if __name__ == "__main__":
    sys.exit(main())
