"""Metrics: totals that are counted elsewhere become increments, each under its own labels."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from reprise.engine_ext.frontend import shared_exact
from reprise.engine_ext.frontend.exact_memory import ExactMemoryStats
from reprise.engine_ext.frontend.serving_metrics import _LOOK_UPS, ServingMetrics


@dataclass
class Source:
    drafted: int
    accepted: int


class Provider(msgspec.Struct):
    """As a worker in this process reports it; over vLLM's wire it is a dict."""

    steps: int
    accepted: int
    by_source: dict[str, Source]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of this test's own: collectors are the process's."""
    return str(request.node.name)


def value(metric: str, model: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"reprise:{metric}", {"model_name": model, **labels})


def test_requests_are_counted_by_kind_and_timed(name: str) -> None:
    metrics = ServingMetrics(name)
    for kind in ("exact", "miss", "miss"):
        metrics.request(kind, 2e-4)
    assert value("requests_total", name, kind="exact") == 1
    assert value("requests_total", name, kind="miss") == 2
    assert value("exact_lookup_seconds_sum", name) == pytest.approx(6e-4)
    metrics.refused("paused engine")
    assert value("passed_through_total", name, reason="paused engine") == 1


def test_evictions_are_counted_by_reason_once(name: str) -> None:
    metrics = ServingMetrics(name)
    for evicted, expired in ((3, 1), (3, 1), (5, 1)):
        metrics.memory(ExactMemoryStats(answers=2, bytes=512, evicted=evicted, expired=expired))
    assert value("exact_evictions_total", name, why="room") == 5
    assert value("exact_evictions_total", name, why="age") == 1
    assert value("exact_memory_bytes", name) == 512
    assert value("exact_memory_answers", name) == 2


def test_look_ups_in_the_tier_are_counted_by_outcome_once(name: str) -> None:
    metrics = ServingMetrics(name)
    for hits in (2, 2, 5):
        metrics.shared({"hit": hits, "late": 1, "written": 4, "unreadable": 1, "fingerprint": "f"})
    assert value("exact_tier_lookups_total", name, outcome="hit") == 5
    assert value("exact_tier_lookups_total", name, outcome="late") == 1
    assert value("exact_tier_lookups_total", name, outcome="miss") == 0
    assert value("exact_tier_lookups_total", name, outcome="unreadable") == 1
    assert value("exact_tier_written_total", name) == 4


def test_verified_answers_are_there_from_the_start(name: str) -> None:
    """Otherwise a rate never sees the first."""
    metrics = ServingMetrics(name)
    for outcome in ("whole", "part", "none"):
        assert value("verified_replays_total", name, outcome=outcome) == 0
    assert value("tokens_verified_total", name) == 0
    metrics.verified("part", 7)
    assert value("verified_replays_total", name, outcome="part") == 1
    assert value("tokens_verified_total", name) == 7


def test_errors_of_front_end_and_workers_are_kept_apart(name: str) -> None:
    metrics = ServingMetrics(name)
    metrics.errors("front_end", {"replay": 2})
    metrics.errors("front_end", {"replay": 3, "watch": 1})
    metrics.workers([{"errors": {"replay": 4}}, {}, {"errors": {"replay": 3}}])
    assert value("errors_total", name, where="front_end", place="replay") == 3
    assert value("errors_total", name, where="front_end", place="watch") == 1
    assert value("errors_total", name, where="worker", place="replay") == 7


def test_errors_of_each_worker_count_once(name: str) -> None:
    metrics = ServingMetrics(name)
    seven, two = {"errors": {"propose": 7}}, {"errors": {"propose": 2}}
    for reports in ([seven, two], [{}, two], [seven, two]):  # one had nothing to say
        metrics.workers(reports)
    assert value("errors_total", name, where="worker", place="propose") == 9


@pytest.mark.parametrize("as_dict", [False, True])
def test_workers_are_distinguished_by_their_order_and_read_in_any_form(
    name: str, as_dict: bool
) -> None:
    def report(steps: int, drafted: int, accepted: int) -> dict[str, Any]:
        provider: Any = Provider(steps, accepted, {"corpus": Source(drafted, accepted)})
        if as_dict:
            provider = msgspec.to_builtins(provider)
        return {"provider": provider, "near_answers_in_time": {"meaning": 1}}

    metrics = ServingMetrics(name)
    metrics.workers([report(10, 40, 20), {}, report(1, 5, 5)])
    metrics.workers([report(12, 50, 24), {}, report(1, 5, 5)])
    assert value("draft_steps_total", name) == 13
    assert value("drafted_tokens_total", name, source="corpus") == 55
    assert value("accepted_tokens_total", name, source="corpus") == 29
    assert value("near_answers_in_time_total", name, found_by="meaning") == 2


def test_seconds_of_retrieval_are_named_for_their_unit(name: str) -> None:
    metrics = ServingMetrics(name)
    metrics.retrieval({"embed_s": 0.5, "stored": 4, "answers": 3})
    metrics.retrieval({"embed_s": 0.75, "stored": 4, "answers": 2})
    assert value("retrieval_embed_seconds_total", name) == 0.75
    assert value("retrieval_stored_total", name) == 4
    assert value("retrieval_answers", name) == 2


def test_what_is_not_applied_to_vllm_is_zero(name: str) -> None:
    metrics = ServingMetrics(name)
    metrics.features("front_end", {"front end": "applied", "single flight": "no such method"})
    metrics.workers([{"compat": {"requests by id": "applied"}}])
    labels = {"where": "front_end"}
    assert value("feature_applied", name, feature="front end", **labels) == 1
    assert value("feature_applied", name, feature="single flight", **labels) == 0
    assert value("feature_applied", name, feature="requests by id", where="worker") == 1


def test_every_outcome_of_a_look_up_is_counted() -> None:
    source = Path(shared_exact.__file__).read_text()
    said = set(re.findall(r"outcomes\[([^\]]+)\]", source))
    outcomes = {word for text in said for word in re.findall(r'"(\w+)"', text)}
    assert len(outcomes) > 5
    assert outcomes - {"written"} <= set(_LOOK_UPS)
