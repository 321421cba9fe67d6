"""The retriever of an engine worker: the front end's where there is one, else its own."""

import os
from typing import TYPE_CHECKING

from reprise.engine_ext.core.engine_retrieval import ADDRESS_VARIABLE, start_retrieval
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.retriever import Retriever
from reprise.retrieval.service.retrieval_client import RetrievalClient

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def worker_retriever(vllm_config: "VllmConfig", config: RetrievalConfig) -> Retriever:
    """Return near answers for this worker, from a process of their own: embedding and search must
    not share the engine's interpreter lock."""
    address = os.environ.get(ADDRESS_VARIABLE)
    if address:
        return RetrievalClient(address, config=config)
    return start_retrieval(vllm_config, config)
