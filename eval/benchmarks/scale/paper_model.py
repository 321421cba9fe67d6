"""What many answers, replicas and requests come to, on paper: formulas over measured constants.

The constants are what `bench_scale.py --only store` and `bench_retrieval.py --only insert` print;
Milvus' own are those of its HNSW index, since Milvus Lite says nothing of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

from reprise.eval.benchmarks.retrieval.inputs import Figure


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Of answers of 150 tokens, embedded in 384 dimensions."""

    redis_bytes: float
    """Of an answer in Redis, with all that is kept of it."""
    record_bytes: float
    """Of an answer on the wire."""
    written_us: float
    """Of Redis' processor for an answer written."""
    look_up_us: float
    """Of Redis' processor for 32 answers by id."""
    memory_bytes: float
    """Of an answer in a replica's memory, index included."""
    milvus_bytes: float = 4 * 384 + 2 * 16 * 8 + 128
    """Of a row: the vector in float32, its links, ids and keys."""
    near_answers: int = 32
    entry_bytes: float = 200.0
    """Of an answer in the stream of changes."""


MEASURED = Constants(
    redis_bytes=1649, record_bytes=1205, written_us=28, look_up_us=159, memory_bytes=3420
)
"""With 200,000 answers (Redis) and 20,000 (memory), on two cores of an AMD EPYC."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What is to be served."""

    answers: int
    replicas: int = 50
    requests_per_s: float = 2000.0
    joining_share: float = 1.0
    """Of the requests, those whose answers are stored."""
    held_share: float = 0.5
    """Of what look-ups find, what memory holds."""
    memory_bytes: float = 256 * 2**20
    shard_bytes: float = 25 * 2**30
    """Of a Redis shard that are used for answers."""
    node_bytes: float = 48 * 2**30
    """Of a Milvus query node that are used for rows."""
    copies: int = 2
    """Of each row in Milvus, so that a node may fail."""


def model_figures(constants: Constants, fleet: Fleet) -> list[Figure]:
    """Return what a fleet needs."""
    c, f = constants, fleet
    written_per_s = f.requests_per_s * f.joining_share
    fetched = c.near_answers * (1 - f.held_share)
    redis_cores = (written_per_s * c.written_us + f.requests_per_s * c.look_up_us) / 1e6
    stream_bytes_per_s = f.replicas * written_per_s * c.entry_bytes
    held = f.memory_bytes / c.memory_bytes
    at = f"{f.answers // 10**6} million"

    def figure(name: str, value: float, unit: str) -> Figure:
        return Figure("model", f"{at}: {name}", value, unit)

    return [
        figure("Redis, memory", f.answers * c.redis_bytes / 2**30, "GiB"),
        figure("Redis, shards by memory", f.answers * c.redis_bytes / f.shard_bytes, "shards"),
        figure("Redis, processors, streams not counted", redis_cores, "cores"),
        figure("Milvus, memory", f.copies * f.answers * c.milvus_bytes / 2**30, "GiB"),
        figure("Milvus, nodes", f.copies * f.answers * c.milvus_bytes / f.node_bytes, "nodes"),
        figure("Milvus, look-ups", f.requests_per_s, "1/s"),
        figure("answers in a replica's memory", held, "answers"),
        figure("share of all answers", 100 * held / f.answers, "%"),
        figure(
            "network of a replica, look-ups",
            f.requests_per_s / f.replicas * fetched * c.record_bytes / 2**20,
            "MiB/s",
        ),
        figure("network of a replica, stream", stream_bytes_per_s / f.replicas / 2**20, "MiB/s"),
        figure("network of the stream's shard", stream_bytes_per_s / 2**20, "MiB/s"),
        figure("a restart reads", held * c.record_bytes / 2**20, "MiB"),
    ]
