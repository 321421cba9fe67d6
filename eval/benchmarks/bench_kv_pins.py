"""Pinned prefixes on real servers: time to first token under eviction, and what they cost.

    python eval/benchmarks/bench_kv_pins.py                      both sections, on the demo model
    python eval/benchmarks/bench_kv_pins.py --only first-token   one of them

Sections: `first-token` (chats with one long `system` prompt, and between any two of them as many
foreign prompts as evict everything that may be evicted) and `nothing-to-pin` (throughput of prompts
that have nothing in common). Two servers run with the same few KV blocks, one with pins, one
without; while one is asked, the other stands still, first the one and then the other. Answers are
compared before anything is reported. Rows are appended to a CSV.
"""

import asyncio
import contextlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from reprise.eval.benchmarks.serving.load import (
    SPECULATIVE,
    Server,
    Timing,
    alone,
    ask,
    ask_all,
    load_of,
    stop_all,
)
from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.report.command_line import names_of, run_command
from reprise.eval.report.results_csv import RESULTS, append_rows, check_rows_fit

SECTIONS = ("first-token", "nothing-to-pin")
RESULTS_FILE = RESULTS / "bench_kv_pins.csv"
FIELDS = ("section", "model", "pins", "requests", "name", "value", "unit", "note")
_BLOCK_TOKENS = 32
_HEADERS = {"x-reprise-cache": "off", "x-reprise-drafts": "off"}
_PINS = (False, True)


@contextlib.contextmanager
def serving(model: str, dtype: str, num_blocks: int) -> Iterator[dict[bool, Server]]:
    """Two servers with so many KV blocks, by whether they pin; started one after the other."""
    options = ["--block-size", str(_BLOCK_TOKENS), "--num-gpu-blocks-override", str(num_blocks)]
    options += ["--max-model-len", "1024"]
    servers: dict[bool, Server] = {}
    try:
        for pins in _PINS:
            environment = {
                "REPRISE_KV_PINS__ENABLED": str(pins).lower(),
                "REPRISE_RETRIEVAL__EMBEDDING_MODEL": "lexical",
            }
            servers[pins] = Server(
                model, SPECULATIVE["reprise"], dtype=dtype, options=options, environment=environment
            )
            servers[pins].wait()
        yield servers
    finally:
        stop_all(servers.values())


async def chats(
    server: Server, system: str, questions: Sequence[str], foreign: Sequence[str]
) -> list[Timing]:
    """Ask each question of a chat with the `system` prompt, and the foreign prompts in between."""
    timings = []
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for number, question in enumerate(questions):
            given: dict[str, Any] = {"max_tokens": 16, "headers": _HEADERS}
            timings.append(await ask(session, server, question, system=system, **given))
            for other in foreign:
                await ask(session, server, f"{number} {other}", max_tokens=1, headers=_HEADERS)
    return timings


def bench_first_token(servers: dict[bool, Server], requests: int) -> list[dict[str, Any]]:
    """Time to first token of the second chat on.

    Raises:
        RuntimeError: answers differ; or pins have saved nothing.
    """
    system = " ".join(f"Rule {number}: answer in short and plain words." for number in range(30))
    foreign = [" ".join(f"{chr(97 + n)}{i}" for i in range(170)) for n in range(8)]
    questions = [f"What is {number} and {number + 1}?" for number in range(requests + 1)]
    found: dict[bool, list[Timing]] = {pins: [] for pins in _PINS}
    for first in (0, len(questions) // 2):
        part = questions[first : first + len(questions) // 2]
        for pins in _PINS if first == 0 else reversed(_PINS):
            with alone(servers[pins], list(servers.values())):
                found[pins] += asyncio.run(chats(servers[pins], system, part, foreign))
    if any(a.text != b.text for a, b in zip(found[False], found[True], strict=True)):
        raise RuntimeError("answers with pins differ from those without")
    (stats,) = servers[True].stats()["kv_pins"]
    if not stats["saved_tokens"]:
        raise RuntimeError("pins have saved nothing: there was no pressure, or nothing was pinned")
    rows = []
    for pins in _PINS:
        times_ms = sorted(timing.first_token_s * 1e3 for timing in found[pins][1:])
        for name, place in (("p20", 0.2), ("p50", 0.5), ("p80", 0.8)):
            value = times_ms[int(place * (len(times_ms) - 1))]
            row = _row("first-token", pins, len(times_ms), f"first token, {name}", value, "ms")
            rows.append(row)
    rows[-2]["note"] = (
        f"{rows[-2]['value'] / rows[1]['value']:.2f} x; {stats['saved_tokens']} tokens kept"
    )
    return rows


def bench_nothing_to_pin(
    servers: dict[bool, Server], requests: int, rounds: int
) -> list[dict[str, Any]]:
    """Throughput of prompts that have nothing in common, in rounds.

    Raises:
        RuntimeError: answers differ.
    """
    tokens_per_s: dict[bool, list[float]] = {pins: [] for pins in _PINS}
    for number in range(rounds + 1):
        questions = [f"{number}.{index} " + f"word{index} " * 20 for index in range(requests)]
        texts = {}
        for pins in _PINS if number % 2 else reversed(_PINS):
            with alone(servers[pins], list(servers.values())):
                timings, wall_s = asyncio.run(
                    ask_all(
                        servers[pins], questions, concurrency=8, max_tokens=64, headers=_HEADERS
                    )
                )
            texts[pins] = [timing.text for timing in timings]
            if number:  # the first round warms up
                tokens_per_s[pins].append(load_of(timings, wall_s).tokens_per_s)
        if texts[False] != texts[True]:
            raise RuntimeError("answers with pins differ from those without")
    rows = [
        _row("nothing-to-pin", pins, rounds * requests, "throughput, p50",
             statistics.median(tokens_per_s[pins]), "tok/s")
        for pins in _PINS
    ]  # fmt: skip
    pairs = zip(tokens_per_s[True], tokens_per_s[False], strict=True)
    ratios = [one / other for one, other in pairs]
    rows[1]["note"] = f"{statistics.median(ratios):.3f} x, median of {rounds} rounds"
    return rows


def _row(
    section: str, pins: bool, requests: int, name: str, value: float, unit: str
) -> dict[str, Any]:
    return {
        "section": section,
        "pins": "with" if pins else "without",
        "requests": requests,
        "name": name,
        "value": round(value, 3),
        "unit": unit,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections asked for."""
    return run_command(measure, arguments, name="bench_kv_pins.py")


def measure(
    only: Annotated[
        str, typer.Option(metavar="LIST", help="Sections, separated by commas.")
    ] = ",".join(SECTIONS),
    model: Annotated[str, typer.Option(help="Without, the demo model.")] = "",
    dtype: Annotated[str, typer.Option(help="Of the model.")] = DEMO_DTYPE,
    num_blocks: Annotated[int, typer.Option(min=40, help="KV blocks of 32 tokens.")] = 110,
    requests: Annotated[int, typer.Option(min=4, help="Of one run.")] = 24,
    rounds: Annotated[int, typer.Option(min=2, help="Of the section `nothing-to-pin`.")] = 7,
    csv: Annotated[Path, typer.Option(help="Append rows to this file.")] = RESULTS_FILE,
) -> int:
    """Measure what pinned prefixes save and cost."""
    sections = names_of("--only", only, SECTIONS)
    check_rows_fit(csv, fields=FIELDS)
    rows: list[dict[str, Any]] = []
    with serving(model or str(demo_model_path()), dtype, num_blocks) as servers:
        if "first-token" in sections:
            rows += bench_first_token(servers, requests)
        if "nothing-to-pin" in sections:
            rows += bench_nothing_to_pin(servers, requests, rounds)
    for row in rows:
        row["model"] = Path(model).name or "demo"
        name = f"{row['section']}: {row['pins']} pins, {row['name']}"
        typer.echo(f"{name:55} {row['value']:>10} {row['unit']:6} {row.get('note', '')}")
    append_rows(csv, rows, fields=FIELDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
