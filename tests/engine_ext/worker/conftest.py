"""Verification installed in the process of the tests, and taken away again."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def vllm_kernels() -> None:
    """vLLM's own kernels for a CPU in place of Triton's."""
    from reprise.eval.benchmarks.bench_verify_cpu import use_vllms_cpu_kernels

    use_vllms_cpu_kernels()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, vllm_kernels: None) -> Iterator[Any]:  # noqa: ARG001
    """Verification by the torch backend on V1, on for sampling too, taken away after the test."""
    from reprise.engine_ext.compat.patches import Feature
    from reprise.engine_ext.compat.registry import registry
    from reprise.tests.engine_ext.worker import verification_v1_batch

    registry.revert(Feature.VERIFICATION)
    monkeypatch.setattr(verification_v1_batch.Engine, "installation", None)
    yield verification_v1_batch.verify(enabled=True, backend="torch")
    registry.revert(Feature.VERIFICATION)
