"""Figures of retrieval: inserts, near answers, arrivals, recall, snapshots, and a peer.

Each section checks what it found, then times it; a row for each figure is appended to a CSV.

    python eval/benchmarks/bench_retrieval.py                      every section (some minutes)
    python eval/benchmarks/bench_retrieval.py --only insert,redis   these
    python eval/benchmarks/bench_retrieval.py --only quality --trace support.jsonl --peer FOLDER
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from reprise.eval.benchmarks.retrieval.inputs import (
    NAMESPACE,
    READY_S,
    Figure,
    clustered,
    make_answers,
    quantiles_us,
    questions,
    stand_in,
    timed,
    wait_for,
    wait_until_ready,
)
from reprise.eval.benchmarks.retrieval.prompts import burst_figures
from reprise.eval.benchmarks.retrieval.quality import quality_figures
from reprise.eval.benchmarks.retrieval.snapshot import snapshot_figures
from reprise.eval.live.redis_server import RedisServer
from reprise.eval.report.command_line import names_of, run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.results_csv import RESULTS, append_rows, check_rows_fit
from reprise.eval.report.tables import four_digits
from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.vector_index import VectorIndex
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.retrieval.tiers.sqlite_tier import SqliteTier

RESULTS_FILE = RESULTS / "bench_retrieval.csv"
FIELDS = ("section", "figure", "value", "unit", "target")


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    answers: int
    vectors: int
    traces: tuple[Path, ...]
    peer: Path | None
    seed: int


def section_insert(settings: Settings) -> list[Figure]:
    """Time inserts into memory, and what they hold."""
    embedder = stand_in()
    count = min(settings.answers, 50_000)
    answers = list(make_answers(count, embedder, seed=settings.seed))
    config = RetrievalConfig(
        memory_bytes=4 << 30, queue_length=count + 1, queue_bytes=4 << 30, clauses=False
    )
    before = _resident_bytes()
    retriever = LocalRetriever(config, embedder=embedder)
    retriever.flush(60)
    try:
        began_s = time.perf_counter()
        for answer in answers:
            retriever.store(answer)
        assert retriever.flush(READY_S)
        insert_s = time.perf_counter() - began_s
        assert retriever.stats().answers == count
        lasting = _resident_bytes() - before
    finally:
        retriever.close()
    # The answers themselves were there before: their token ids and texts are counted as encoded.
    shared = sum(len(a.prompt_tokens) + len(a.response_tokens) for a in answers[:1000]) / 1000
    return [
        Figure("insert", "inserted apart from embedding", count / insert_s, "answers/s", ">= 1000"),
        Figure("insert", "held per answer, index included", lasting / count + shared, "bytes"),
    ]


def section_redis(settings: Settings) -> list[Figure]:
    """Time writing to Redis on loopback, and 10,000 answers caught up."""
    from reprise.retrieval.tiers.redis.redis_tier import RedisTier

    embedder = stand_in()
    count = min(settings.answers, 10_000)
    with RedisServer() as server:
        url = server.url
        tier = RedisTier(url)
        batch = list(make_answers(count, embedder, seed=settings.seed))
        write_s = timed(lambda: [tier.put(batch[i : i + 256]) for i in range(0, count, 256)])
        tier.close()
        config = RetrievalConfig(url=url, memory_bytes=1 << 30, clauses=False)
        began_s = time.perf_counter()
        replica = LocalRetriever(config, embedder=embedder)
        assert replica.wait_until_warm(120)
        catch_up_s = time.perf_counter() - began_s
        assert replica.stats().answers == count
        replica.close()
    return [
        Figure("redis", f"{count} answers caught up", catch_up_s, "s", "<= 5"),
        Figure("redis", "written", count / write_s, "answers/s"),
    ]


def section_near(settings: Settings) -> list[Figure]:
    """From prompt to near answers in shared memory, by another process."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        embedder = stand_in()
        tier = SqliteTier(Path(folder) / "answers.sqlite")
        batch: list[Answer] = []
        for answer in make_answers(settings.answers, embedder, seed=settings.seed):
            batch.append(answer)
            if len(batch) == 1000:
                tier.put(batch)
                batch = []
        tier.put(batch)
        tier.close()
        config = RetrievalConfig(
            url=f"sqlite:///{folder}/answers.sqlite", memory_bytes=4 << 30, min_similarity=-1.0
        )
        retriever = ProcessRetriever(config)
        try:
            start_s = timed(lambda: wait_until_ready(retriever, settings.answers))
            _let_the_graph_grow(retriever)
            print(f"near: loaded, process {retriever.pid}", file=sys.stderr, flush=True)
            texts = questions(400, seed=settings.seed)
            cpu_s = _cpu_seconds(retriever.pid)
            took = []
            for number, text in enumerate(texts[:200]):
                began_s = time.perf_counter()
                retriever.submit(f"one{number}", namespace=NAMESPACE, text=text)
                wait_for(retriever, [f"one{number}"])
                took.append(time.perf_counter() - began_s)
                assert len(retriever.poll(f"one{number}") or []) == 32
            cpu_s = (_cpu_seconds(retriever.pid) - cpu_s) / len(took)
            together = []
            for first in range(200, 392, 32):
                ids = [f"many{n}" for n in range(first, first + 32)]
                began_s = time.perf_counter()
                for request_id, number in zip(ids, range(first, first + 32), strict=True):
                    retriever.submit(request_id, namespace=NAMESPACE, text=texts[number])
                wait_for(retriever, ids)
                together.append(time.perf_counter() - began_s)
            polls = [timed(lambda: retriever.poll("unknown")) for _ in range(2000)]
        finally:
            retriever.close()
    p50, p99 = quantiles_us(took)
    at = f"{settings.answers} answers"
    figures += [
        Figure("near", f"prompt to near answers, {at}, p50", p50 / 1e3, "ms", "<= 25"),
        Figure("near", f"prompt to near answers, {at}, p99", p99 / 1e3, "ms", "<= 80"),
        Figure("near", "processor time of the process per prompt", cpu_s * 1e3, "ms"),
        Figure(
            "near", "32 prompts at once, all there, p50", float(np.median(together)) * 1e3, "ms"
        ),
        Figure("near", "poll before there is a result, p50", quantiles_us(polls)[0], "us"),
        Figure("near", f"warm start from a file, {at}", start_s, "s"),
    ]
    return figures


def _let_the_graph_grow(retriever: ProcessRetriever) -> None:
    """Until all answers have moved into the index's graph, in the background."""
    deadline_s = time.monotonic() + 2 * READY_S
    time.sleep(2.0)
    while retriever.stats().waiting and time.monotonic() < deadline_s:
        time.sleep(0.5)
    if retriever.stats().waiting:
        raise RuntimeError(f"the graph is not complete: {retriever.stats()}")


def _cpu_seconds(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def section_vectors(settings: Settings) -> list[Figure]:
    """Recall against brute force and time of a search, with the whole index in its graph."""
    rows = clustered(settings.vectors, 384, seed=settings.seed)
    queries = clustered(300, 384, seed=settings.seed)  # the same topics, other wordings
    queries = queries + 0.3 * clustered(300, 384, seed=settings.seed + 1)
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    index = VectorIndex(384)
    began_s = time.perf_counter()
    for number, row in enumerate(rows):
        index.add(number, row)
        if number % 64 == 63:
            index.maintain()
    while index.maintain():
        pass
    build_s = time.perf_counter() - began_s
    cosines = queries @ rows.T
    truth = np.argpartition(-cosines, 8, axis=1)[:, :8]
    took, worked, right = [], [], 0
    for query, best in zip(queries, truth, strict=True):
        began_s, worked_s = time.perf_counter(), time.thread_time()
        [found] = index.search(query[None], 32)
        took.append(time.perf_counter() - began_s)
        worked.append(time.thread_time() - worked_s)
        right += len({i for i, _ in found[:8]} & set(best.tolist()))
    p50, p99 = quantiles_us(took)
    at = f"{settings.vectors} vectors"
    return [
        Figure("vectors", f"recall@8, {at}", right / (8 * len(queries)), "share", ">= 0.95"),
        Figure("vectors", f"search, {at}, p50", p50 / 1e3, "ms"),
        Figure("vectors", f"search, {at}, p99", p99 / 1e3, "ms", "<= 5"),
        # What the search itself takes, whoever else is on the machine.
        Figure("vectors", "search, processor time, p99", quantiles_us(worked)[1] / 1e3, "ms"),
        Figure("vectors", "added to the index", settings.vectors / build_s, "vectors/s"),
    ]


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


SECTIONS: dict[str, Callable[[Settings], list[Figure]]] = {
    "insert": section_insert,
    "redis": section_redis,
    "near": section_near,
    "burst": lambda settings: burst_figures(seed=settings.seed),
    "vectors": section_vectors,
    "snapshot": lambda settings: snapshot_figures(settings.vectors, seed=settings.seed),
    "quality": lambda settings: quality_figures(settings.traces, settings.peer),
}


def main(
    only: Annotated[
        str, typer.Option(metavar="LIST", help="Sections, separated by commas.")
    ] = ",".join(SECTIONS),
    answers: Annotated[int, typer.Option(min=1, help="Stored, at most.")] = 100_000,
    vectors: Annotated[int, typer.Option(min=1, help="In the vector index.")] = 200_000,
    trace: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="JSONL, for `quality`; may be repeated."),
    ] = None,
    peer: Annotated[
        Path | None, typer.Option(exists=True, help="Folder that GPTCache is installed in.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of whatever is random.")] = 0,
    output: Annotated[Path, typer.Option(help="Append rows to this file.")] = RESULTS_FILE,
) -> None:
    """Check and time retrieval: inserts, near answers, arrivals, recall, snapshots, and a peer."""
    chosen = names_of("--only", only, SECTIONS)
    check_rows_fit(output, fields=FIELDS)
    settings = Settings(answers, vectors, tuple(trace or ()), peer, seed)
    print(f"Measured on {describe_machine()}.")
    for name in chosen:
        figures = SECTIONS[name](settings)
        for figure in figures:
            print(f"{figure.name:58} {figure.value:12.3f} {figure.unit:10} {figure.target}")
        rows = [
            {
                "section": figure.section,
                "figure": figure.name,
                "value": four_digits(figure.value),
                "unit": figure.unit,
                "target": figure.target,
            }
            for figure in figures
        ]
        append_rows(output, rows, fields=FIELDS)


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_retrieval.py"))
