"""What a worker reports is all that the metrics read of it."""

import dataclasses
from typing import Any

import pytest

pytest.importorskip("vllm")

from prometheus_client import REGISTRY

from reprise.engine_ext.frontend.serving_metrics import ServingMetrics
from reprise.tests.engine_ext.worker.proposer_world import World


class Whole(dict[str, Any]):
    """A report whose reader gets no default for what is not in it."""

    def get(self, key: str, default: Any = None) -> Any:
        del default
        return self[key]


def whole(report: Any) -> Any:
    """A report as it comes over vLLM's wire, without defaults at any depth."""
    if dataclasses.is_dataclass(report) and not isinstance(report, type):
        report = dataclasses.asdict(report)
    if isinstance(report, dict):
        return Whole({name: whole(value) for name, value in report.items()})
    return report


@pytest.mark.engine
def test_the_metrics_read_nothing_that_no_worker_reports(world: World) -> None:
    world.step(new=("a",))
    for _ in range(12):
        world.step()
    ServingMetrics("whole report").workers([whole(world.proposer.report())])

    def value(name: str, **labels: str) -> float:
        labels |= {"model_name": "whole report"}
        return REGISTRY.get_sample_value(f"reprise:{name}", labels) or 0.0

    assert value("draft_steps_total") > 0
    assert value("propose_calls_total") > 0
    assert value("propose_seconds_total") > 0
    sources = ("context", "near_answer", "corpus")
    assert sum(value("accepted_tokens_total", source=source) for source in sources) > 0
