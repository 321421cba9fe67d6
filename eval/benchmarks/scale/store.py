"""Milvus Lite and Redis with many answers: writing, look-ups, memory, catch-up, deletion."""

from __future__ import annotations

import math
import queue
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from reprise.eval.benchmarks.retrieval.inputs import (
    NAMESPACE,
    Figure,
    clustered,
    make_answers,
    quantiles_us,
    stand_in,
    timed,
    wait_for,
)
from reprise.eval.live.milvus_server import MilvusServer
from reprise.eval.live.redis_server import RedisServer
from reprise.eval.report.tables import four_digits
from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.api.search_url import parse_search
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.remote.milvus_index import MilvusIndex
from reprise.retrieval.remote.remote_index import FloatArray, RemoteRow
from reprise.retrieval.remote.remote_search import RemoteFound, RemoteSearch
from reprise.retrieval.remote.remote_writer import RemoteWriter
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.near_search import unpack
from reprise.retrieval.tiers.record import encode_record
from reprise.retrieval.tiers.redis.redis_tier import RedisTier

_BATCH, _SHOWN_EVERY = 256, 10_000
_LARGE_TENANT = "large"
"""Is deleted at the end."""
_QUERIES, _NEAR = 200, 32
_TIMEOUT_S = 600.0
BUDGET_S = 0.015


def store_figures(count: int, tenant: int, *, seed: int) -> list[Figure]:
    """Return what so many answers of 150 tokens come to, in Redis and in Milvus Lite; `tenant` of
    them are those of the one that is deleted."""
    embedder = stand_in()
    made = _Made(count, tenant, embedder, seed)
    with RedisServer() as redis_server, MilvusServer() as milvus:
        tier = RedisTier(redis_server.url, timeout_s=60.0)
        url = parse_search(milvus.url)
        assert url is not None
        index = MilvusIndex(
            url, tokenizer_key="", embedder=embedder.identity, dim=embedder.dim, timeout_s=600.0
        )
        index.open()
        figures: list[Figure] = []
        measures: tuple[Callable[[], list[Figure]], ...] = (
            lambda: _fill(redis_server.url, tier, index, made),
            lambda: _memory(redis_server.url, milvus, count),
            lambda: _look_ups(redis_server.url, tier, index, made),
            lambda: _catch_up(redis_server.url, milvus.url, count, embedder),
            lambda: _deletion(tier, index),
        )
        for measure in measures:
            found = measure()
            for figure in found:
                print(f"{figure.name}: {four_digits(figure.value)} {figure.unit}", file=sys.stderr)
            figures += found
        index.close()
        tier.close()
    return figures


@dataclass(frozen=True, slots=True)
class _Made:
    """Answers that are made anew wherever they are needed."""

    count: int
    tenant: int
    embedder: Embedder
    seed: int

    def is_large(self, number: int) -> bool:
        """Whether an answer is of the large tenant, whose answers lie among the others."""
        return (number + 1) * self.tenant // self.count > number * self.tenant // self.count

    def answers(self) -> Iterator[Answer]:
        """Yield all of them."""
        for number, answer in enumerate(make_answers(self.count, self.embedder, seed=self.seed)):
            large = self.is_large(number)
            yield msgspec.structs.replace(answer, namespace=_LARGE_TENANT) if large else answer


def _fill(url: str, tier: RedisTier, index: MilvusIndex, made: _Made) -> list[Figure]:
    count, answers, before_s = made.count, made.answers(), _redis_cpu_s(url)
    done, tier_s, index_s = 0, 0.0, 0.0
    while batch := list(islice(answers, _BATCH)):
        rows = [_row(answer, made.embedder.dim) for answer in batch]
        tier_s += timed(lambda each=batch: tier.put(each))  # type: ignore[misc]
        index_s += timed(lambda each=rows: index.upsert(each))  # type: ignore[misc]
        done += len(batch)
        if done % _SHOWN_EVERY < _BATCH:
            print(
                f"{done} of {count} written: Redis {tier_s:.1f} s, Milvus Lite {index_s:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    settle_s = timed(index.settle)
    redis_us = (_redis_cpu_s(url) - before_s) / count * 1e6
    at = f"{count} answers"
    return [
        Figure("store", f"Redis, its processor time, {at}", redis_us, "us/written"),
        Figure("store", f"written to Redis, {at}", count / tier_s, "answers/s"),
        Figure("store", f"written to Milvus Lite, {at}", count / index_s, "answers/s"),
        Figure("store", f"flushed by Milvus Lite, {at}", settle_s, "s"),
    ]


def _row(answer: Answer, dim: int) -> RemoteRow:
    vector = unpack(answer.embedding, dim)
    assert vector is not None
    return RemoteRow(answer.namespace, answer.answer_id, answer.created_s, vector)


def _redis_cpu_s(url: str) -> float:
    import redis

    spent = redis.Redis.from_url(url).info("cpu")
    return float(spent["used_cpu_user"]) + float(spent["used_cpu_sys"])


def _memory(url: str, milvus: MilvusServer, count: int) -> list[Figure]:
    import redis

    used = redis.Redis.from_url(url).info("memory")["used_memory"]
    pages = int(Path(f"/proc/{milvus.pid}/statm").read_text().split()[1])
    at = f"{count} answers"
    return [
        Figure("store", f"Redis, its memory, {at}", used / count, "bytes/answer"),
        Figure("store", f"Milvus Lite, resident, {at}", pages * 4096 / count, "bytes/answer"),
        Figure("store", f"Milvus Lite, on disk, {at}", milvus.num_bytes / count, "bytes/answer"),
    ]


def _look_ups(url: str, tier: RedisTier, index: MilvusIndex, made: _Made) -> list[Figure]:
    """Time look-ups, one after the other, after comparing what they find with all vectors."""
    rows = clustered(made.count, made.embedder.dim, seed=made.seed).astype("<f2")
    rows = rows[[n for n in range(made.count) if not made.is_large(n)]].astype(np.float32)
    ids = [a.answer_id for a in made.answers() if a.namespace == NAMESPACE]
    queries = _queries(made.embedder.dim, seed=made.seed)
    index.search(NAMESPACE, queries[:1], _NEAR)
    right, search_s = 0, []
    for query in queries:
        began_s = time.perf_counter()
        [found] = index.search(NAMESPACE, query[None], _NEAR)
        search_s.append(time.perf_counter() - began_s)
        best = np.argpartition(-(rows @ query), 8)[:8]
        right += len({i for i, _ in found[:8]} & {ids[place] for place in best})
    before_s = _redis_cpu_s(url)
    find_s = [
        timed(lambda n=n: tier.find(NAMESPACE, ids[n : n + _NEAR]))  # type: ignore[misc]
        for n in range(0, min(len(ids) - _NEAR, _QUERIES * _NEAR), _NEAR)
    ]
    redis_us = (_redis_cpu_s(url) - before_s) / len(find_s) * 1e6
    record_bytes = np.mean([len(encode_record(a)) for a in tier.find(NAMESPACE, ids[:200])])
    both_s = _both_levels(tier, index, queries)
    at = f"{made.count} answers"
    figures = [Figure("store", f"recall@8, {at}", right / (8 * len(queries)), "share", ">= 0.95")]
    for name, took_s in (
        ("Milvus Lite, 32 nearest", search_s),
        ("Redis, 32 answers by id", find_s),
        ("both, nothing in memory", both_s),
    ):
        p50, p99 = quantiles_us(took_s)
        figures.append(Figure("store", f"{name}, p50, {at}", p50 / 1e3, "ms"))
        figures.append(Figure("store", f"{name}, p99, {at}", p99 / 1e3, "ms"))
    figures += [
        Figure("store", f"Redis, its processor time, {at}", redis_us, "us/look-up"),
        Figure("store", f"one record, {at}", float(record_bytes), "bytes"),
    ]
    in_time = float(np.mean(np.array(both_s) <= BUDGET_S))
    return [*figures, Figure("store", f"of these within 15 ms, {at}", in_time, "share")]


def _queries(dim: int, *, seed: int) -> FloatArray:
    """Return float32 [queries, dim]: the same topics, other wordings."""
    made = clustered(_QUERIES, dim, seed=seed) + 0.3 * clustered(_QUERIES, dim, seed=seed + 1)
    units: FloatArray = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return units


def _both_levels(tier: RedisTier, index: MilvusIndex, queries: FloatArray) -> list[float]:
    """Return how long whole look-ups took, by a replica whose memory holds none of it."""
    writer = RemoteWriter(max_rows=1, ttl_s=None)
    writer.start(index, embedder="", dim=queries.shape[1])
    while not writer.is_open:
        time.sleep(0.01)
    remote = RemoteSearch(index, writer, budget_s=BUDGET_S, holds=lambda *_: False, find=tier.find)
    took = []
    for query in queries:
        results: queue.SimpleQueue[RemoteFound | None] = queue.SimpleQueue()
        began_s = time.perf_counter()
        assert remote.ask(NAMESPACE, query[None], _NEAR, results.put)
        found = results.get(timeout=_TIMEOUT_S)
        took.append(time.perf_counter() - began_s)
        assert found is not None
        assert len(found.answers) == _NEAR
    writer.close()
    return took


def _catch_up(url: str, search: str, count: int, embedder: Embedder) -> list[Figure]:
    """Time a new replica whose memory holds a tenth of the answers, the most valuable first."""
    config = RetrievalConfig(
        url=url,
        search=search,
        memory_bytes=max(1 << 20, 320 * count),
        clauses=False,
        min_similarity=-1.0,  # of vectors that are made up
    )
    began_s = time.perf_counter()
    replica = LocalRetriever(config, embedder=embedder)
    try:
        while not _finds(replica):
            time.sleep(0.002)
        first_s = time.perf_counter() - began_s
        assert replica.wait_until_warm(_TIMEOUT_S)
        all_s = time.perf_counter() - began_s
        held = replica.stats().answers
    finally:
        replica.close()
    return [
        Figure("store", f"a new replica of {count} finds answers after", first_s, "s", "<= 5"),
        Figure("store", f"and all that fit its memory ({held})", all_s, "s"),
    ]


def _finds(replica: LocalRetriever) -> bool:
    """Return whether a request gets near answers, from memory or from beyond it."""
    replica.submit("first", namespace=NAMESPACE, text="a question")
    wait_for(replica, ["first"])
    found = replica.poll("first")
    replica.discard("first")
    return bool(found)


def _deletion(tier: RedisTier, index: MilvusIndex) -> list[Figure]:
    """Time the deletion of the large tenant."""
    removed: Sequence[tuple[str, str]] = ()

    def forget() -> None:
        nonlocal removed
        removed = tier.forget(Invalidation.create(namespace=_LARGE_TENANT))

    tier_s = timed(forget)
    index_s = timed(lambda: index.remove_namespace(_LARGE_TENANT, created_until_s=math.inf))
    [left] = index.search(_LARGE_TENANT, _queries(384, seed=0)[:1], 1)
    assert not left
    assert not tier.answer_ids(_LARGE_TENANT)
    name = f"deletion of a tenant with {len(removed)} answers"
    return [
        Figure("store", f"{name}, Redis", tier_s, "s"),
        Figure("store", f"{name}, Milvus Lite", index_s, "s"),
    ]
