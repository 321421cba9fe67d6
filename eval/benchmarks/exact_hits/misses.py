"""What looking for exact hits costs a request that is none: throughput, and pairs of requests."""

import asyncio
import contextlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from reprise.eval.benchmarks.exact_hits.rows import figure_row, how_sure
from reprise.eval.benchmarks.exact_hits.servers import (
    WITHOUT_DRAFTS,
    num_hits,
    serving,
    shared_counts,
)
from reprise.eval.benchmarks.serving.load import Server, Timing, alone, ask_all
from reprise.eval.live.redis_server import RedisServer

MISS_KINDS = {
    "off": {"exact_hits": "off"},
    "memory": {"exact_hits_from_others": "off"},
    "redis": {"exact_hits_from_others": "verified"},
}


def bench_miss(
    model: str,
    questions: Sequence[str],
    max_tokens: int,
    tick: Callable[[], None],
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
                            headers=WITHOUT_DRAFTS,
                            salt_prefix=f"{kind}-{number}",
                        )
                    )
                said = [timing.text for timing in timings]
                if said != texts.setdefault("first", said):
                    raise RuntimeError(f"answers differ in round {number} of {kind}")
                if number >= 0:
                    speeds[kind].append(sum(t.output_tokens for t in timings) / wall_s)
                tick()
        if hits := {kind: n for kind, each in servers.items() if (n := num_hits(each))}:
            raise RuntimeError(f"expected misses alone, came {hits}")
        shared = shared_counts(servers["redis"])
    looked_up = {name: shared.get(name, 0) for name in ("miss", "late", "busy", "failed", "hit")}
    if not any(looked_up.values()):
        raise RuntimeError(f"expected look-ups in Redis, came {shared}")
    note = ", ".join(f"{count} {name}" for name, count in looked_up.items())
    row = figure_row("miss", "redis", questions, "look-ups", sum(looked_up.values()), "requests")
    return [*_miss_rows(speeds, questions, concurrency), {**row, "note": note}]


def _miss_rows(
    speeds: dict[str, list[float]], questions: Sequence[str], concurrency: int
) -> list[dict[str, Any]]:
    """Rows of each kind's tokens/s by round, alone and to those with exact hits off."""
    rows = []
    for kind, own in speeds.items():
        note = f"{min(own):.0f} to {max(own):.0f}, {concurrency} at once, {len(own)} rounds"
        speed = figure_row(
            "miss", kind, questions, "throughput, median", statistics.median(own), "tok/s"
        )
        rows.append({**speed, "note": note})
        if kind == "off":
            continue
        ratios = [a / b for a, b in zip(own, speeds["off"], strict=True)]
        name = "throughput / off, median of rounds"
        row = figure_row("miss", kind, questions, name, statistics.median(ratios), "x")
        spread = f"rounds: {min(ratios):.3f} to {max(ratios):.3f}"
        rows.append({**row, "note": "; ".join(filter(None, [how_sure(ratios), spread]))})
    return rows


def bench_pairs(
    model: str, questions: Sequence[str], max_tokens: int, tick: Callable[[], None], *, pairs: int
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
            if hits := num_hits(server):
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
            row = figure_row("pairs", kind, values, label, statistics.median(values), unit)
            rows.append({**row, "note": how_sure(values)})
    return rows


def _pair(
    server: Server, questions: Sequence[str], number: int, max_tokens: int
) -> tuple[Timing, Timing]:
    """Ask a question as one that nobody has asked before, with a look-up and without one."""
    headers = [WITHOUT_DRAFTS, {**WITHOUT_DRAFTS, "x-reprise-cache": "off"}]
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
