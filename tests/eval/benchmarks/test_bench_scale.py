"""The figures of many answers: the model on paper, and one small run on real servers."""

import dataclasses

import pytest

from reprise.eval.benchmarks.scale.paper_model import MEASURED, Fleet, model_figures
from reprise.eval.benchmarks.scale.small_memory import check_searched
from reprise.eval.live.milvus_server import is_milvus_installed
from reprise.eval.live.redis_server import redis_executable
from reprise.retrieval.api.retriever import RetrievalStats

NEEDED = pytest.mark.skipif(
    not is_milvus_installed() or redis_executable() is None,
    reason="no Milvus or no redis-server: pip install 'reprise[milvus,dev]'",
)


def by_name(constants, fleet):
    return {
        figure.name.partition(": ")[2]: figure.value for figure in model_figures(constants, fleet)
    }


def test_the_model_is_its_formulas():
    constants = dataclasses.replace(
        MEASURED,
        redis_bytes=2048,
        record_bytes=1024,
        memory_bytes=3110,
        written_us=20,
        look_up_us=80,
    )
    fleet = Fleet(answers=10**8, held_share=0.5, shard_bytes=2**34, memory_bytes=3110 * 1000)
    found = by_name(constants, fleet)
    assert found["Redis, memory"] == pytest.approx(10**8 * 2048 / 2**30)
    assert found["Redis, shards by memory"] == pytest.approx(10**8 * 2048 / 2**34)
    assert found["Redis, processors, streams not counted"] == pytest.approx(0.2)
    assert found["answers in a replica's memory"] == pytest.approx(1000)
    # 40 look-ups a second, 16 records of a KiB each.
    assert found["network of a replica, look-ups"] == pytest.approx(40 * 16 / 1024)
    twice = by_name(constants, dataclasses.replace(fleet, answers=2 * 10**8))
    assert twice["Milvus, nodes"] == pytest.approx(2 * found["Milvus, nodes"])
    assert twice["a restart reads"] == found["a restart reads"]


@pytest.mark.slow
@NEEDED
def test_a_small_store():
    from reprise.eval.benchmarks.scale.store import store_figures

    figures = store_figures(1000, 100, seed=0)
    found = {(figure.name, figure.unit): figure.value for figure in figures}
    assert found["recall@8, 1000 answers", "share"] > 0.95
    assert found["one record, 1000 answers", "bytes"] > 600
    assert found["deletion of a tenant with 100 answers, Redis", "s"] < 20


@pytest.mark.parametrize(("searches", "failed"), [(0, 0), (5, 1)])
def test_memory_alone_is_not_taken_for_milvus(searches, failed):
    check_searched(RetrievalStats(remote_searches=5))
    with pytest.raises(RuntimeError, match="expected look-ups in Milvus"):
        check_searched(RetrievalStats(remote_searches=searches, remote_failed=failed))
