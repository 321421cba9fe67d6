"""Starts an engine's retrieval process, and announces to its workers where it will be found."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reprise.engine_ext.core import logs
from reprise.engine_ext.core.model_key import tokenizer_key_of
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.host.owned_folder import OwnedFolder, make_folder
from reprise.retrieval.service.process_retriever import ProcessRetriever

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ADDRESS_VARIABLE = "REPRISE_RETRIEVAL_ADDRESS"
"""Set by a front end that has started a retrieval process, for the workers that it starts."""
SOCKET = "retrieval"


def start_retrieval(
    vllm_config: "VllmConfig", config: RetrievalConfig, *, for_front_end: bool = False
) -> ProcessRetriever:
    """Start a retrieval process for this engine's model."""
    return ProcessRetriever(
        config,
        tokenizer=vllm_config.model_config.tokenizer,
        tokenizer_key=tokenizer_key_of(vllm_config),
        for_front_end=for_front_end,
        json_logs=logs.wants_json(),
    )


@contextmanager
def announced_retrieval(*, wanted: bool) -> Iterator[OwnedFolder | None]:
    """Announce to the workers that are started inside the block where retrieval will be found:
    at `SOCKET` in this folder.

    The socket there is linked once the workers run: what retrieval needs in this process, threads
    and numba among it, must not be forked into them. Their clients try until it is there.
    """
    if not wanted:
        yield None
        return
    folder = make_folder()
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = str(folder.path / SOCKET)
    try:
        yield folder
    except BaseException:
        folder.remove()
        raise
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLE]
        else:
            os.environ[ADDRESS_VARIABLE] = before
