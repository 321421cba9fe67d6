"""faiss, which comes from one of two packages: for CPUs, or for GPUs too."""

from __future__ import annotations

try:
    import faiss
except ImportError as error:
    raise ImportError(
        "vector search needs faiss: pip install 'reprise[cpu]' or 'reprise[gpu]' "
        f"(faiss-cpu or faiss-gpu-cu12): {error}"
    ) from error

__all__ = ["faiss"]
