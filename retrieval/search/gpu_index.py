"""Vectors on the GPU, searched one by one there, where faiss was built for it."""

from __future__ import annotations

import logging
from typing import Any

from reprise.retrieval.search.faiss_library import faiss

logger = logging.getLogger(__name__)
# faiss would take 1.5 GiB for its scratch, which belongs to the model; a search needs far less.
_SCRATCH_BYTES = 64 << 20


class GpuIndexes:
    """Makes flat indexes on the first GPU; their scratch memory is shared.

    Raises:
        RuntimeError: faiss has no GPU support here, or no GPU; says which.
    """

    def __init__(self) -> None:
        if not hasattr(faiss, "StandardGpuResources"):
            raise RuntimeError("this faiss was built without GPU support")
        if faiss.get_num_gpus() < 1:
            raise RuntimeError("faiss sees no GPU")
        self._resources = faiss.StandardGpuResources()
        self._resources.setTempMemory(_SCRATCH_BYTES)

    def empty(self, dim: int) -> Any:
        """Return an index of no vectors, by inner product."""
        return faiss.GpuIndexFlatIP(self._resources, dim)

    def from_cpu(self, index: Any) -> Any:
        """Return the same vectors on the GPU."""
        return faiss.index_cpu_to_gpu(self._resources, 0, index)

    def to_cpu(self, index: Any) -> Any:
        """Return the same vectors in a CPU index, which can be written to a file."""
        return faiss.index_gpu_to_cpu(index)


def gpu_indexes(wanted: bool) -> GpuIndexes | None:
    """Return indexes on the GPU if they are wanted and can be had; says in one log line if they
    cannot."""
    if not wanted:
        return None
    try:
        return GpuIndexes()
    except RuntimeError as error:
        logger.warning("No vector index on the GPU (%s): searching on the CPU.", error)
        return None
