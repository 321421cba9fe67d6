"""Exact hits over HTTP: from memory, after a restart, and from a second replica."""

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reprise.eval.benchmarks.exact_hits.rows import figure_row
from reprise.eval.benchmarks.exact_hits.servers import (
    WITHOUT_DRAFTS,
    ask_alone,
    serving,
)
from reprise.eval.benchmarks.serving.load import Server, Timing, alone
from reprise.eval.live.redis_server import RedisServer

WHOSE = ("trusted", "verified")
TICKS = 2 * (2 + 3)
# Answers are written behind the reply.
_WRITTEN_AFTER_S = 3.0
# Repeats from memory are quick: so many of each question tell their 99th percentile.
_REPEATS = 5


def bench_hits(
    model: str, questions: Sequence[str], max_tokens: int, tick: Callable[[], None]
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
    kind: str, server: Server, questions: Sequence[str], max_tokens: int, tick: Callable[[], None]
) -> tuple[list[Timing], list[dict[str, Any]]]:
    """Have a server generate, and repeat from memory; what it has generated, and rows of it."""
    ask_alone(server, questions[:2], max_tokens, {"x-reprise-cache": "off"})  # warm up
    made = ask_alone(server, questions, max_tokens, WITHOUT_DRAFTS)
    tick()
    again: list[Timing] = []
    for number in range(1, _REPEATS + 1):
        repeated = ask_alone(server, questions, max_tokens)
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
    tick: Callable[[], None],
) -> list[dict[str, Any]]:
    """What a server makes of answers that another one has generated."""
    ask_alone(
        server, ["What is new?", "What else?"], max_tokens, {"x-reprise-cache": "off"}
    )  # warm up
    source = f"{kind}, {whose}"
    found = ask_alone(server, questions, max_tokens)
    counts = server.hit_counts()
    _check(made, found, server, num_exact=0)
    tick()
    # What an engine would only make for the first answer that it verifies shows here.
    first_ms = found[0].whole_s * 1e3
    rows = [figure_row("hits", source, found[:1], f"the very first {how}", first_ms, "ms")]
    rows += _rows(source, found[1:], note=f"first repeat {how}")
    name = "exact" if whose == "trusted" else "verified"
    if name not in counts:
        raise RuntimeError(f"expected {name} hits {how}, came {counts}")
    rows.append(figure_row("hits", source, found, f"{name} {how}", counts[name], "requests"))
    if whose == "verified":
        tokens = counts["tokens_verified"]
        share = tokens / max(1, sum(timing.output_tokens for timing in found))
        rows.append(figure_row("hits", source, found, "share of tokens verified", share, ""))
        drafted = ask_alone(server, questions, max_tokens, {"x-reprise-cache": "off"})
        _check(made, drafted, server, num_exact=0)
        tick()
        rows += _rows("drafted", drafted, note=f"from the same answers, tier: {kind}")
    return rows


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
    if (exact := server.hit_counts().get("exact", 0)) < num_exact:
        raise RuntimeError(f"expected {num_exact} exact hits, came {exact}")


def _rows(source: str, timings: Sequence[Timing], *, note: str) -> list[dict[str, Any]]:
    """Rows of the time that whole answers took."""
    whole_ms = sorted(timing.whole_s * 1e3 for timing in timings)
    p99 = whole_ms[min(len(whole_ms) - 1, int(0.99 * len(whole_ms)))]
    return [
        {**figure_row("hits", source, timings, name, value, "ms"), "note": note}
        for name, value in (("whole answer, p50", statistics.median(whole_ms)),
                            ("whole answer, p99", p99))
    ]  # fmt: skip
