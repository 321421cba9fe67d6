"""The dashboard asks for metrics that exist."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from reprise.engine_ext.frontend.exact_memory import ExactMemoryStats
from reprise.engine_ext.frontend.serving_metrics import _ERROR_PLACES, ServingMetrics

DOCS = Path(__file__).resolve().parents[2] / "docs"
DASHBOARD = DOCS / "grafana.json"
REPORT = {
    "provider": {
        "steps": 10,
        "accepted": 25,
        "by_source": {"corpus": {"drafted": 40, "accepted": 25}},
    },
    "propose_us": {"count": 10, "sum": 500.0, "p50": 40.0, "p99": 90.0},
    "near_answers_in_time": {"meaning": 2, "tokens": 1},
    "near_answers_late": 1,
    "errors": {"propose": 1},
}
RETRIEVAL = {
    "submitted": 4,
    "abandoned": 1,
    "found": 3,
    "stored": 2,
    "evicted": 1,
    "dropped": 1,
    "errors": 0,
    "embed_s": 0.5,
    "search_s": 0.1,
    "answers": 2,
    "bytes": 4096,
    "state": "degraded",
    "tier": "redis",
    "breakers": {"read": "half-open", "write": "open"},
    "unwritten": 5,
    "uncredited": 2,
    "unreadable": 3,
    "restarts": 2,
    "hangs": 1,
}


@pytest.fixture
def metrics() -> ServingMetrics:
    metrics = ServingMetrics("test_grafana", tier="redis")
    metrics.request("exact", 1e-4)
    metrics.refused("a reason")
    metrics.saved(7)
    metrics.stored()
    metrics.near_answers("semantic")
    metrics.memory(ExactMemoryStats(answers=1, bytes=2048, evicted=3, expired=0))
    metrics.errors("front_end", {"replay": 2})
    metrics.workers([{}, REPORT])
    metrics.retrieval(RETRIEVAL)
    return metrics


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"reprise:{name}", {"model_name": "test_grafana", **labels})


@pytest.mark.usefixtures("metrics")
def test_every_metric_of_the_dashboard_exists() -> None:
    asked = set(re.findall(r"(reprise:\w+)", DASHBOARD.read_text()))
    exist = {sample.name for metric in REGISTRY.collect() for sample in metric.samples}
    assert len(asked) > 15
    assert asked <= exist
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def expressions() -> list[str]:
    """All of PromQL that users get: the dashboard's, and those of the page of metrics."""
    panels = re.findall(r'"expr": ("(?:[^"\\]|\\.)*")', DASHBOARD.read_text())
    page = (DOCS / "metrics.md").read_text()
    # In the cells of a table a bar is written with a backslash.
    cells = [cell.replace("\\|", "|") for cell in re.findall(r"`([^`]*reprise:[^`]*)`", page)]
    alerts = re.findall(r"expr: (.*)", page)
    return [*map(json.loads, panels), *cells, *alerts]


def labels_asked_for(expression: str) -> dict[str, set[str]]:
    """Labels by which an expression chooses and groups, each with the values that it names."""
    asked: dict[str, set[str]] = {}
    for names in re.findall(r"\b(?:by|ignoring) \(([^)]+)\)", expression):
        asked |= {name.strip(): set() for name in names.split(",")}
    for name, values in re.findall(r'(\w+)=~?"([^"]*)"', expression):
        asked[name] = asked.get(name, set()) | set(values.split("|"))
    return asked


@pytest.mark.usefixtures("metrics")
def test_every_label_of_an_expression_exists() -> None:
    """One that does not leaves a panel empty, and an alert silent."""
    there: dict[str, dict[str, set[str]]] = {}
    for sample in (sample for metric in REGISTRY.collect() for sample in metric.samples):
        labels = there.setdefault(sample.name, {})
        for name, text in sample.labels.items():
            labels.setdefault(name, set()).add(text)
    assert len(expressions()) > 35
    for expression in expressions():
        names = re.findall(r"reprise:\w+", expression)
        known = {label: values for name in names for label, values in there.get(name, {}).items()}
        for label, values in labels_asked_for(expression).items():
            assert label in known, expression
            assert values - {"$model"} <= known[label], expression


def test_axes_say_that_rates_are_per_second_and_legends_what_a_quantile_is() -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            is_rate = "rate(" in target["expr"] and " / " not in target["expr"]
            is_time = "histogram_quantile" in target["expr"]
            if is_rate and not is_time:
                assert unit in ("reqps", "ops", "eps", "suffix: tokens/s"), panel["title"]
            # The label is 0.5 and 0.99, which is no percentile.
            assert "p{{quantile}}" not in target["legendFormat"]


@pytest.mark.parametrize("tier", ["sqlite", "redis"])
def test_they_exist_from_the_start_at_0(tier: str) -> None:
    name = f"just_started_{tier}"
    ServingMetrics(name, tier=tier)
    asked = set(re.findall(r"(reprise:\w+)", DASHBOARD.read_text()))
    samples = [
        sample
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.labels.get("model_name") == name and not sample.name.endswith("_created")
    ]
    assert asked <= {sample.name for sample in samples}
    assert {sample.value for sample in samples} == {0}
    assert {s.labels["operation"] for s in samples if "breaker" in s.name} == {"read", "write"}


def test_the_places_of_errors_are_those_in_the_code() -> None:
    root = DASHBOARD.parents[1] / "engine_ext"
    record = re.compile(r"(?:errors|own)\.(?:record(?:ing)?|writing)\(\s*\"([^\"]+)\"")
    recorded = {place for path in root.rglob("*.py") for place in record.findall(path.read_text())}
    assert recorded == {place for places in _ERROR_PLACES.values() for place in places}


def test_reports_are_totals_and_become_increments(metrics: ServingMetrics) -> None:
    accepted = value("accepted_tokens_total", source="corpus")
    assert accepted is not None
    metrics.workers([{}, REPORT])
    assert value("accepted_tokens_total", source="corpus") == accepted
    more = {**REPORT["provider"], "by_source": {"corpus": {"drafted": 50, "accepted": 30}}}  # type: ignore[dict-item]
    metrics.workers([{}, {**REPORT, "provider": more}])
    assert value("accepted_tokens_total", source="corpus") == accepted + 5
    # The worker was started again: its totals begin anew.
    metrics.workers([{}, REPORT])
    assert value("accepted_tokens_total", source="corpus") == accepted + 5 + 25
    assert value("mean_acceptance_length") == 3.5


def test_breakers_and_what_the_tier_never_got(metrics: ServingMetrics) -> None:
    tier = {"tier": "redis"}
    states = [
        value("tier_breaker_state", operation=operation, **tier) for operation in ("read", "write")
    ]
    assert states == [1, 2]
    unwritten, uncredited = (
        value(f"tier_un{what}_total", **tier) for what in ("written", "credited")
    )
    assert unwritten is not None
    better = {"read": "closed", "write": "closed"}
    metrics.retrieval({**RETRIEVAL, "unwritten": 9, "breakers": better})
    assert value("tier_unwritten_total", **tier) == unwritten + 4
    assert value("tier_uncredited_total", **tier) == uncredited
    assert value("tier_breaker_state", operation="write", **tier) == 0


@pytest.mark.usefixtures("metrics")
def test_restarts_of_retrieval_are_counted() -> None:
    assert (value("retrieval_restarts_total") or 0) >= 2
    assert (value("retrieval_hangs_total") or 0) >= 1
    assert (value("tier_unreadable_total", tier="redis") or 0) >= 3


def test_without_a_tier_there_are_no_breakers() -> None:
    ServingMetrics("without_a_tier").retrieval({**RETRIEVAL, "tier": "", "breakers": {}})
    labels = {"model_name": "without_a_tier", "tier": ""}
    assert REGISTRY.get_sample_value("reprise:tier_unwritten_total", labels) is None
