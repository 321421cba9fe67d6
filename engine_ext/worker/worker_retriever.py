"""The retriever of an engine worker: the front end's where there is one, else its own."""

import os
from typing import TYPE_CHECKING

from reprise.engine_ext.core.model_key import tokenizer_key_of
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.retriever import Retriever
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.retrieval.service.retrieval_client import RetrievalClient

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ADDRESS_VARIABLE = "REPRISE_RETRIEVAL_ADDRESS"
"""Set by a front end that has started a retrieval process, for the workers that it starts."""


def worker_retriever(vllm_config: "VllmConfig", config: RetrievalConfig) -> Retriever:
    """Near answers for this worker, from a process of their own: embedding and search must not
    share the engine's interpreter lock."""
    address = os.environ.get(ADDRESS_VARIABLE)
    if address:
        return RetrievalClient(address, config=config)
    return start_retrieval(vllm_config, config)


def start_retrieval(
    vllm_config: "VllmConfig", config: RetrievalConfig, *, for_front_end: bool = False
) -> ProcessRetriever:
    """A retrieval process for this engine's model."""
    return ProcessRetriever(
        config,
        tokenizer=vllm_config.model_config.tokenizer,
        tokenizer_key=tokenizer_key_of(vllm_config),
        for_front_end=for_front_end,
    )
