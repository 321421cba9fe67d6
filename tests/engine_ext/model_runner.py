"""vLLM's model runner in this process, without an engine around it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from reprise.engine_ext.core.identity import PROPOSER_PATH


def engine_config(model: Path, **settings: Any) -> Any:
    """vLLM's config of a small engine with our proposer, one step at a time."""
    from vllm.engine.arg_utils import EngineArgs

    given: dict[str, Any] = {
        "model": str(model),
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 2,
        "max_num_batched_tokens": 1024,
        "async_scheduling": False,
        "speculative_config": {"model": PROPOSER_PATH, "num_speculative_tokens": 4},
    }
    return EngineArgs(**given | settings).create_engine_config()


@contextmanager
def model_runner_of(config: Any) -> Iterator[Any]:
    """Build the model runner of an engine with this config, with its model; its proposer searches
    near answers in this process."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.distributed.parallel_state import (
        destroy_distributed_environment,
        destroy_model_parallel,
    )
    from vllm.v1.worker import cpu_model_runner

    from reprise.engine_ext import proposer
    from reprise.retrieval import RetrievalConfig
    from reprise.retrieval.in_process.local_retriever import LocalRetriever
    from reprise.retrieval.search.embedding import Embedder

    retriever = LocalRetriever(
        RetrievalConfig(embedding_model="lexical", clauses=False), embedder=Embedder("lexical")
    )
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        tempfile.TemporaryDirectory() as folder,
        set_current_vllm_config(config),
    ):
        monkeypatch.setattr(proposer, "worker_retriever", lambda *_: retriever)
        # It would outlive the runner.
        monkeypatch.setattr(cpu_model_runner, "_set_torch_accelerator_to_noop", lambda: None)
        init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        try:
            initialize_model_parallel()
            runner = cpu_model_runner.CPUModelRunner(config, torch.device("cpu"))
            runner.load_model()
            yield runner
        finally:
            retriever.close()
            destroy_model_parallel()
            destroy_distributed_environment()
