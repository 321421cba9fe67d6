"""Verification installed in the process of the tests, and taken away again; a proposer in it."""

from collections.abc import Iterator
from pathlib import Path
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


@pytest.fixture(scope="module")
def vllm_config(demo_model: Path) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    from reprise.engine_ext.core.identity import PROPOSER_PATH

    return EngineArgs(
        model=str(demo_model),
        enforce_eager=True,
        max_model_len=1024,
        speculative_config={"model": PROPOSER_PATH, "num_speculative_tokens": 4},
        additional_config={"reprise": {"drafts": {"verify_cost": 0.0}}},
    ).create_engine_config()


@pytest.fixture
def world(vllm_config: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from reprise.engine_ext import proposer as proposer_module
    from reprise.retrieval import RetrievalConfig
    from reprise.retrieval.in_process.local_retriever import LocalRetriever
    from reprise.retrieval.search.embedding import Embedder
    from reprise.tests.engine_ext.worker.proposer_world import World

    retriever = LocalRetriever(
        RetrievalConfig(embedding_model="lexical", clauses=False), embedder=Embedder("lexical")
    )
    monkeypatch.setattr(proposer_module, "worker_retriever", lambda *_: retriever)
    world = World(vllm_config)
    yield world
    retriever.close()
