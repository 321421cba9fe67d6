"""What stands for the metrics where there are none."""

import inspect

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.frontend.no_metrics import NoMetrics
from reprise.engine_ext.frontend.serving_metrics import ServingMetrics


def test_nothing_of_the_metrics_is_left() -> None:
    public = {
        name: method
        for name, method in vars(ServingMetrics).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    assert len(public) > 10
    for name, method in public.items():
        assert name in vars(NoMetrics), f"NoMetrics counts {name}"
        assert inspect.signature(vars(NoMetrics)[name]) == inspect.signature(method)
