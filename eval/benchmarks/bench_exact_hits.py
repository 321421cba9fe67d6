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

import asyncio
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from reprise.eval.benchmarks.serving.load import SPECULATIVE, Server, Timing, alone, ask_all
from reprise.eval.benchmarks.serving.look_ups import FINGERPRINT_WITHIN_S, timed_look_ups
from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.redis_server import RedisServer
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.intervals import median_interval
from reprise.eval.report.progress import Stage, progress_stages
from reprise.eval.report.results_csv import RESULTS, append_rows

SECTIONS = ("look-ups", "hits", "miss", "pairs")
WHOSE = ("trusted", "verified")
MISS_KINDS = {
    "off": {"exact_hits": "off"},
    "memory": {"exact_hits_from_others": "off"},
    "redis": {"exact_hits_from_others": "verified"},
}
Tick = Callable[[], None]
RESULTS_FILE = RESULTS / "bench_exact_hits.csv"
FIELDS = ("section", "from", "requests", "name", "value", "unit", "note")
# Answers are written behind the reply.
_WRITTEN_AFTER_S = 3.0
# Repeats from memory are quick: so many of each question tell their 99th percentile.
_REPEATS = 5
_TICKS_OF_HITS = 2 * (2 + 3)
_WITHOUT_DRAFTS = {"x-reprise-drafts": "off"}


class Begun(NamedTuple):
    """A server that has been started, and may not answer yet."""

    server: Server
    trusts: bool

    def ready(self) -> Server:
        """Wait until it answers, searches, and shares if it is to."""
        self.server.wait()
        self.server.wait_for_retrieval()
        if self.trusts:
            _wait(lambda: _shared(self.server)["fingerprint"] is not None, FINGERPRINT_WITHIN_S)
        return self.server


@contextlib.contextmanager
def serving(model: str, url: str, **serving: str) -> Iterator[Begun]:
    """Start a server of ours on this tier; `serving`: its settings."""
    environment = {f"REPRISE_SERVING__{name.upper()}": value for name, value in serving.items()}
    environment |= {"REPRISE_RETRIEVAL__URL": url}
    server = Server(model, SPECULATIVE["reprise"], dtype=DEMO_DTYPE, environment=environment)
    try:
        yield Begun(server, serving.get("exact_hits_from_others") == "trusted")
    finally:
        server.stop()


def bench_look_ups(model: str, count: int, tick: Tick) -> list[dict[str, Any]]:
    """Time a look-up that finds an answer of 200 tokens, and one that finds nothing."""
    rows = []
    for kind, name, took_ms, num_others in timed_look_ups(model, count):
        for quantile, place in (("p50", 0.5), ("p99", 0.99)):
            value = took_ms[int(place * (count - 1))]
            row = _row("look-ups", kind, took_ms, f"{name}, {quantile}", value, "ms")
            rows.append({**row, "note": f"{num_others} more not in time"})
        tick()
    return rows


def bench_hits(
    model: str, questions: Sequence[str], max_tokens: int, tick: Tick
) -> list[dict[str, Any]]:
    """Generation, repeats from memory, and first repeats by another server."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        with serving(model, _sqlite(folder, "first"), exact_hits_from_others="trusted") as begun:
            made, found = _first_server("sqlite", begun.ready(), questions, max_tokens, tick)
        rows += found
        urls = {}
        for whose in WHOSE:
            # Each its own: a server that stands still may hold a lock on the file.
            shutil.copytree(Path(folder, "first"), Path(folder, whose))
            urls[whose] = _sqlite(folder, whose)
        others = _servers(stack, model, list(urls.items()))
        how = "after a restart"
        for whose, other in zip(WHOSE, others, strict=True):
            with alone(other, others):
                rows += _other_server(
                    other, "sqlite", whose, questions, max_tokens, made, how, tick
                )
    with RedisServer() as redis, contextlib.ExitStack() as stack:
        servers = _servers(stack, model, [(whose, redis.url) for whose in ("trusted", *WHOSE)])
        with alone(servers[0], servers):
            made, found = _first_server("redis", servers[0], questions, max_tokens, tick)
        rows += found
        how = "from a second replica"
        for whose, other in zip(WHOSE, servers[1:], strict=True):
            with alone(other, servers):
                rows += _other_server(other, "redis", whose, questions, max_tokens, made, how, tick)
    return rows


def _sqlite(folder: str, name: str) -> str:
    Path(folder, name).mkdir(exist_ok=True)
    return f"sqlite:///{folder}/{name}/answers.sqlite"


def _servers(
    stack: contextlib.ExitStack, model: str, chosen: Sequence[tuple[str, str]]
) -> list[Server]:
    """Start servers side by side, by whose answers they repeat and on which tier."""
    begun = [
        stack.enter_context(serving(model, url, exact_hits_from_others=whose))
        for whose, url in chosen
    ]
    return [each.ready() for each in begun]


def _first_server(
    kind: str, server: Server, questions: Sequence[str], max_tokens: int, tick: Tick
) -> tuple[list[Timing], list[dict[str, Any]]]:
    """Have a server generate, and repeat from memory; what it has generated, and rows of it."""
    _ask(server, questions[:2], max_tokens, {"x-reprise-cache": "off"})  # warm up
    made = _ask(server, questions, max_tokens, _WITHOUT_DRAFTS)
    tick()
    again: list[Timing] = []
    for number in range(1, _REPEATS + 1):
        repeated = _ask(server, questions, max_tokens)
        _check(made, repeated, server, num_exact=number * len(questions))
        again += repeated
    tick()
    note = f"tier: {kind}"
    rows = _rows("generated", made, note=note) + _rows("memory", again, note=note)
    time.sleep(_WRITTEN_AFTER_S)
    return made, rows


def _other_server(
    server: Server,
    kind: str,
    whose: str,
    questions: Sequence[str],
    max_tokens: int,
    made: Sequence[Timing],
    how: str,
    tick: Tick,
) -> list[dict[str, Any]]:
    """What a server makes of answers that another one has generated."""
    _ask(server, ["What is new?", "What else?"], max_tokens, {"x-reprise-cache": "off"})  # warm up
    source = f"{kind}, {whose}"
    found = _ask(server, questions, max_tokens)
    counts = _counts(server)
    _check(made, found, server, num_exact=0)
    tick()
    # What an engine would only make for the first answer that it verifies shows here.
    first_ms = found[0].whole_s * 1e3
    rows = [_row("hits", source, found[:1], f"the very first {how}", first_ms, "ms")]
    rows += _rows(source, found[1:], note=f"first repeat {how}")
    name = "exact" if whose == "trusted" else "verified"
    rows.append(_row("hits", source, found, f"{name} {how}", counts.get(name, 0), "requests"))
    if whose == "verified":
        tokens = counts.get("tokens_verified", 0)
        share = tokens / max(1, sum(timing.output_tokens for timing in found))
        rows.append(_row("hits", source, found, "share of tokens verified", share, ""))
        drafted = _ask(server, questions, max_tokens, {"x-reprise-cache": "off"})
        _check(made, drafted, server, num_exact=0)
        tick()
        rows += _rows("drafted", drafted, note=f"from the same answers, tier: {kind}")
    return rows


def bench_miss(
    model: str,
    questions: Sequence[str],
    max_tokens: int,
    tick: Tick,
    *,
    rounds: int,
    concurrency: int,
) -> list[dict[str, Any]]:
    """Throughput of misses: exact hits off, in memory, in memory and Redis."""
    speeds: dict[str, list[float]] = {kind: [] for kind in MISS_KINDS}
    texts: dict[str, list[str]] = {}
    with contextlib.ExitStack() as stack:
        begun = {
            kind: stack.enter_context(
                serving(model, stack.enter_context(RedisServer()).url, **settings)
            )
            for kind, settings in MISS_KINDS.items()
        }
        servers = {kind: each.ready() for kind, each in begun.items()}
        for number in range(-1, rounds):  # the first one warms up
            for kind in list(servers)[:: -1 if number % 2 else 1]:
                with alone(servers[kind], list(servers.values())):
                    timings, wall_s = asyncio.run(
                        ask_all(
                            servers[kind],
                            questions,
                            concurrency=concurrency,
                            max_tokens=max_tokens,
                            headers=_WITHOUT_DRAFTS,
                            salt_prefix=f"{kind}-{number}",
                        )
                    )
                said = [timing.text for timing in timings]
                if said != texts.setdefault("first", said):
                    raise RuntimeError(f"answers differ in round {number} of {kind}")
                if number >= 0:
                    speeds[kind].append(sum(t.output_tokens for t in timings) / wall_s)
                tick()
        if hits := {kind: n for kind, each in servers.items() if (n := _num_hits(each))}:
            raise RuntimeError(f"expected misses alone, came {hits}")
        shared = _shared(servers["redis"])
    looked_up = {name: shared.get(name, 0) for name in ("miss", "late", "busy", "failed", "hit")}
    note = ", ".join(f"{count} {name}" for name, count in looked_up.items())
    row = _row("miss", "redis", questions, "look-ups", sum(looked_up.values()), "requests")
    return [*_miss_rows(speeds, questions, concurrency), {**row, "note": note}]


def _miss_rows(
    speeds: dict[str, list[float]], questions: Sequence[str], concurrency: int
) -> list[dict[str, Any]]:
    """Rows of each kind's tokens/s by round, alone and to those with exact hits off."""
    rows = []
    for kind, own in speeds.items():
        note = f"{min(own):.0f} to {max(own):.0f}, {concurrency} at once, {len(own)} rounds"
        speed = _row("miss", kind, questions, "throughput, median", statistics.median(own), "tok/s")
        rows.append({**speed, "note": note})
        if kind == "off":
            continue
        ratios = [a / b for a, b in zip(own, speeds["off"], strict=True)]
        name = "throughput / off, median of rounds"
        row = _row("miss", kind, questions, name, statistics.median(ratios), "x")
        spread = f"rounds: {min(ratios):.3f} to {max(ratios):.3f}"
        rows.append({**row, "note": "; ".join(filter(None, [_how_sure(ratios), spread]))})
    return rows


def bench_pairs(
    model: str, questions: Sequence[str], max_tokens: int, tick: Tick, *, pairs: int
) -> list[dict[str, Any]]:
    """Time of a miss beside that of the same request not looked up: in memory, and in Redis too."""
    rows = []
    for kind in ("memory", "redis"):
        with RedisServer() as redis, serving(model, redis.url, **MISS_KINDS[kind]) as begun:
            server = begun.ready()
            asked = []
            for number in range(-len(questions), pairs):  # each question once to warm up
                looked_up, other = _pair(server, questions, number, max_tokens)
                if looked_up.text != other.text:
                    raise RuntimeError(f"the answers of pair {number} of {kind} differ")
                if number >= 0:
                    asked.append((looked_up, other))
                    tick()
            if hits := _num_hits(server):
                raise RuntimeError(f"expected misses alone, came {hits} hits")
        rows += _pair_rows(kind, asked)
    return rows


def _pair_rows(kind: str, asked: Sequence[tuple[Timing, Timing]]) -> list[dict[str, Any]]:
    """Rows of what a look-up adds to the first token and to the whole answer, in ms and as a
    ratio."""
    rows = []
    for what, name in (("first token", "first_token_s"), ("whole answer", "whole_s")):
        pairs = [(getattr(one, name), getattr(other, name)) for one, other in asked]
        more_ms = [1e3 * (one - other) for one, other in pairs]
        ratios = [one / other for one, other in pairs]
        for values, label, unit in (
            (more_ms, f"{what}, more than not looked up", "ms"),
            (ratios, f"{what} / not looked up", "x"),
        ):
            row = _row("pairs", kind, values, label, statistics.median(values), unit)
            rows.append({**row, "note": _how_sure(values)})
    return rows


def _pair(
    server: Server, questions: Sequence[str], number: int, max_tokens: int
) -> tuple[Timing, Timing]:
    """Ask a question as one that nobody has asked before, with a look-up and without one."""
    headers = [_WITHOUT_DRAFTS, {**_WITHOUT_DRAFTS, "x-reprise-cache": "off"}]
    timings: dict[int, Timing] = {}
    for which in (0, 1) if number % 2 else (1, 0):
        asked, _ = asyncio.run(
            ask_all(
                server,
                [questions[number % len(questions)]],
                concurrency=1,
                max_tokens=max_tokens,
                headers=headers[which],
                salt_prefix=f"{which}-{number}",
            )
        )
        (timings[which],) = asked
    return timings[0], timings[1]


def _how_sure(values: Sequence[float]) -> str:
    interval = median_interval(values)
    return "" if interval is None else f"95% sure: {interval[0]:.3f} to {interval[1]:.3f}"


def _ask(
    server: Server, questions: Sequence[str], max_tokens: int, headers: dict[str, str] | None = None
) -> list[Timing]:
    """Ask one after the other."""
    timings, _ = asyncio.run(
        ask_all(server, questions, concurrency=1, max_tokens=max_tokens, headers=headers or {})
    )
    return timings


def _check(
    made: Sequence[Timing], found: Sequence[Timing], server: Server, *, num_exact: int
) -> None:
    """Compare what was repeated with what was generated.

    Raises:
        RuntimeError: An answer differs, or fewer were exact hits.
    """
    changed = sum(hit.text != one.text for hit, one in zip(found, made, strict=True))
    if changed:
        raise RuntimeError(f"{changed} of {len(made)} answers differ from what was generated")
    if (exact := _counts(server).get("exact", 0)) < num_exact:
        raise RuntimeError(f"expected {num_exact} exact hits, came {exact}")


def _counts(server: Server) -> dict[str, Any]:
    counts: dict[str, Any] = server.stats()["front_end"]["counts"]
    return counts


def _num_hits(server: Server) -> int:
    counts = _counts(server)
    return sum(int(counts.get(name, 0)) for name in ("exact", "verified", "followed"))


def _shared(server: Server) -> dict[str, Any]:
    return server.stats()["front_end"]["shared"] or {}


def _wait(condition: Any, within_s: float) -> None:
    """Wait until a condition holds.

    Raises:
        RuntimeError: It did not in time.
    """
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"waited in vain for {within_s:.0f} s")
        time.sleep(0.2)


def _rows(source: str, timings: Sequence[Timing], *, note: str) -> list[dict[str, Any]]:
    """Rows of the time that whole answers took."""
    whole_ms = sorted(timing.whole_s * 1e3 for timing in timings)
    p99 = whole_ms[min(len(whole_ms) - 1, int(0.99 * len(whole_ms)))]
    return [
        {**_row("hits", source, timings, name, value, "ms"), "note": note}
        for name, value in (("whole answer, p50", statistics.median(whole_ms)),
                            ("whole answer, p99", p99))
    ]  # fmt: skip


def _row(
    section: str, source: str, asked: Sequence[Any], name: str, value: float, unit: str
) -> dict[str, Any]:
    return {
        "section": section,
        "from": source,
        "requests": len(asked),
        "name": name,
        "value": round(value, 3),
        "unit": unit,
    }


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
    sections = [section.strip() for section in only.split(",")]
    if unknown := set(sections) - set(SECTIONS):
        raise InputError(f"--only: expected some of {', '.join(SECTIONS)}, got {min(unknown)}")
    model = str(demo_model_path())
    questions = list(dict.fromkeys(row.prompt for row in make_demo_trace()))[:requests]

    def look_up(stage: Stage) -> list[dict[str, Any]]:
        with stage("look-ups", 4) as tick:
            return bench_look_ups(model, look_ups, tick)

    def hit(stage: Stage) -> list[dict[str, Any]]:
        with stage("hits", _TICKS_OF_HITS) as tick:
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
