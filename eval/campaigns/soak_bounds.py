"""Soak of the bounds: many small answers of many namespaces through a real retrieval process.

    python eval/campaigns/soak_bounds.py                                     # some minutes
    python eval/campaigns/soak_bounds.py --answers 6000 --namespaces 600     # what the tests run

Answers are stored as an engine's worker stores them, and their updates are taken in as it does,
once with the SQLite file behind memory and once with a real Redis. At every look the memory of both
processes, the files, what Redis uses and the shared memory must be within what the settings say.
The exit status is 1 if anything was not.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from reprise.eval.live.redis_server import RedisServer
from reprise.eval.report.command_line import names_of, run_command
from reprise.eval.report.progress import progress_stages
from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.retrieval.service.process_retriever import ProcessRetriever

MIB = 1 << 20
TIERS = ("sqlite", "redis")
# What Python, its libraries and allocators may take beyond what is charged for.
_SLACK = 1.35
_SLACK_BYTES = 64 * MIB
# A put only hands the answer over; looks at a loaded machine must not fail for that.
_MAX_PUT_P50_US, _MAX_PUT_P99_US = 200.0, 5000.0
_LOOKS = 20
_INDEX_WITHIN_S = 90.0


_SEEN = {
    "sqlite": {"process RSS grown by", "shared", "files", "index"},
    "redis": {"process RSS grown by", "shared", "redis"},
}
"""What must have been there to be measured: of what was never seen no bound is known to hold."""


@dataclass(frozen=True)
class Bounds:
    """The settings that are soaked."""

    memory_bytes: int
    tier_bytes: int
    max_namespaces: int
    shared_bytes: int = 16 * MIB
    queue_bytes: int = 8 * MIB


@dataclass(frozen=True)
class Figure:
    """The maximum that was seen of something, and what it may be at most."""

    tier: str
    what: str
    max_seen: float
    bound: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether it was within its bound."""
        return self.max_seen <= self.bound


def small_answer(number: int, num_namespaces: int) -> Answer:
    """An answer of some 60 tokens; namespaces come as users do, some of them much more often."""
    random = np.random.default_rng(number)
    # Every namespace comes to its turn, and half of the answers are of a tenth of them.
    tenth = max(1, num_namespaces // 10)
    namespace = number % num_namespaces if number % 2 else (number // 2) % tenth
    return Answer.create(
        prompt_token_ids=random.integers(0, 30_000, 24),
        response_token_ids=random.integers(0, 30_000, 40),
        prompt_text=f"question {number} about {random.integers(1000)}",
        namespace=f"salt-{namespace:08d}",
    )


def soak(
    tier: str,
    bounds: Bounds,
    *,
    answers: int,
    namespaces: int,
    on_answer: Callable[[], None] = lambda: None,
) -> list[Figure]:
    """Store answers and look, some 20 times, at what everything takes."""
    with contextlib.ExitStack() as stack:
        url = "memory://" if tier == "sqlite" else stack.enter_context(RedisServer()).url
        config = RetrievalConfig(
            url=url,
            embedding_model="lexical",
            clauses=False,
            memory_bytes=bounds.memory_bytes,
            tier_bytes=bounds.tier_bytes,
            max_namespaces=bounds.max_namespaces,
            shared_bytes=bounds.shared_bytes,
            queue_bytes=bounds.queue_bytes,
        )
        retriever = stack.enter_context(contextlib.closing(ProcessRetriever(config)))
        overlap = TokenOverlap()
        overlap.warm_up()
        if not retriever.flush(120):
            raise RuntimeError("the retrieval process did not start")
        redis = _redis_client(url) if tier == "redis" else None
        before = _look(retriever, redis) | {"shared": 0.0}
        max_seen: dict[str, float] = {}
        took_us: list[float] = []

        def look() -> None:
            for what, value in _look(retriever, redis).items():
                max_seen[what] = max(max_seen.get(what, 0.0), value - before.get(what, 0.0))

        for number in range(answers):
            one = small_answer(number, namespaces)
            began_s = time.perf_counter()
            retriever.store(one)
            took_us.append(1e6 * (time.perf_counter() - began_s))
            on_answer()
            if number % 500 == 499:  # no faster than answers are indexed, so that none is dropped
                retriever.flush(120)
                for update in retriever.updates():
                    overlap.apply(update)
                retriever.record_usage(one.namespace, {one.answer_id: 30})
            if number % max(1, answers // _LOOKS) == 0 or number == answers - 1:
                look()
        if tier == "sqlite":
            # Soon stored, they may all be there before the index's file is first written.
            deadline_s = time.monotonic() + _INDEX_WITHIN_S
            while "index" not in max_seen and time.monotonic() < deadline_s:
                time.sleep(0.1)
                look()
        return list(_figures(tier, bounds, max_seen, took_us, retriever, overlap))


def _figures(
    tier: str,
    bounds: Bounds,
    max_seen: dict[str, float],
    took_us: list[float],
    retriever: ProcessRetriever,
    overlap: TokenOverlap,
) -> Iterator[Figure]:
    if lacking := _SEEN[tier] - {what for what, value in max_seen.items() if value > 0}:
        raise RuntimeError(f"{tier}: nothing was seen of {', '.join(sorted(lacking))}")
    stats = retriever.stats()
    process = _SLACK * bounds.memory_bytes + bounds.queue_bytes + _SLACK_BYTES
    if tier == "sqlite":  # whose index is copied while its file is written
        process += bounds.memory_bytes / 2
    # The owner holds the answers for exact hits, and a worker's index of shared tokens.
    owner = _SLACK * (bounds.memory_bytes + overlap.num_bytes) + bounds.queue_bytes + _SLACK_BYTES
    for what, bound in (("process RSS grown by", process), ("owner RSS grown by", owner)):
        yield Figure(tier, what, max_seen[what] / MIB, bound / MIB, "MiB")
    yield Figure(
        tier, "shared memory", max_seen["shared"] / MIB, bounds.shared_bytes / MIB + 1, "MiB"
    )
    if tier == "sqlite":
        yield Figure(tier, "files", max_seen["files"] / MIB, bounds.tier_bytes / MIB, "MiB")
        # It holds what memory holds, and is there twice while a new one is written.
        index, written = max_seen["index"], max_seen["index, both files"]
        yield Figure(tier, "index file", index / MIB, bounds.memory_bytes / MIB, "MiB")
        yield Figure(tier, "both index files", written / MIB, 2 * bounds.memory_bytes / MIB, "MiB")
    else:
        # The stream, its nodes, and buffers of connections are beside what answers are charged.
        room = bounds.tier_bytes / MIB + 24
        yield Figure(tier, "used_memory grown by", max_seen["redis"] / MIB, room, "MiB")
    yield Figure(tier, "memory charged", stats.bytes / MIB, bounds.memory_bytes / MIB, "MiB")
    yield Figure(tier, "namespaces", stats.namespaces, bounds.max_namespaces, "")
    yield Figure(tier, "answers lost unsaid", _lost(stats), 0, "")
    yield Figure(tier, "put, p50", statistics.median(took_us), _MAX_PUT_P50_US, "us")
    p99_us = statistics.quantiles(took_us, n=100)[98]
    yield Figure(tier, "put, p99", p99_us, _MAX_PUT_P99_US, "us")
    yield Figure(
        tier, "worker's index", overlap.num_bytes / MIB, bounds.memory_bytes / MIB * 3, "MiB"
    )


def _lost(stats: Any) -> float:
    """Answers whose fate no counter tells."""
    return float(abs(stats.stored - stats.evicted - stats.answers))


def _look(retriever: ProcessRetriever, redis: Any | None) -> dict[str, float]:
    folder = Path(retriever.address).parent
    index_files = _sizes(folder, "*.index*")
    found = {
        "process RSS grown by": _rss(retriever.pid or 0),
        "owner RSS grown by": _rss("self"),
        "files": sum(_sizes(folder, "answers.sqlite", "answers.sqlite-wal")),
        "index": max(index_files, default=0.0),
        "index, both files": sum(index_files),
    }
    if redis is not None:
        found["redis"] = float(redis.info("memory")["used_memory"])
    shared = [path for path in Path("/dev/shm").glob("*") if folder.name in path.name]
    # Of the whole block, not of what has been written to it so far.
    return {key: value for key, value in found.items() if value} | {
        "shared": float(sum(path.stat().st_size for path in shared)) if shared else 0.0
    }


def _sizes(folder: Path, *patterns: str) -> list[float]:
    sizes: list[float] = []
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):  # replaced or removed meanwhile
            sizes.append(float(path.stat().st_size))
    return sizes


def _rss(pid: int | str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return 1024.0 * int(line.split()[1])
    return 0.0


def _redis_client(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url)


def print_figures(figures: list[Figure]) -> None:
    """Print a table on standard output."""
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for name, justify in (
        ("tier", "left"),
        ("figure", "left"),
        ("most", "right"),
        ("bound", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    table.add_column("")
    for figure in figures:
        verdict = "" if figure.holds else "EXCEEDED"
        table.add_row(
            figure.tier,
            figure.what,
            f"{figure.max_seen:,.1f}",
            f"{figure.bound:,.1f}",
            figure.unit,
            verdict,
        )
    Console(width=100).print(table)


def main(
    answers: Annotated[int, typer.Option(min=100, help="Stored in all.")] = 200_000,
    namespaces: Annotated[int, typer.Option(min=1, help="That they are spread over.")] = 20_000,
    tiers: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(TIERS),
    memory_mib: Annotated[int, typer.Option(min=1, help="The bound `memory_bytes`.")] = 128,
    tier_mib: Annotated[int, typer.Option(min=1, help="The bound `tier_bytes`.")] = 64,
    max_namespaces: Annotated[int, typer.Option(min=1, help="The bound of that name.")] = 16_000,
) -> int:
    """Store many small answers and check what everything takes."""
    bounds = Bounds(memory_mib * MIB, tier_mib * MIB, max_namespaces)
    figures: list[Figure] = []
    chosen = names_of("--tiers", tiers, TIERS)
    with progress_stages(quiet=False) as stage:
        for tier in chosen:
            with stage(f"{tier}: answers stored", answers) as tick:
                figures += soak(
                    tier, bounds, answers=answers, namespaces=namespaces, on_answer=tick
                )
    print_figures(figures)
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(run_command(main, name="soak_bounds.py"))
