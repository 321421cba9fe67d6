"""faiss, or one line that says how to install it."""

from __future__ import annotations

try:
    import faiss
except ImportError as error:
    raise ImportError(
        f"vector search needs faiss-cpu: pip install 'reprise[cpu]' or 'reprise[gpu]': {error}"
    ) from error

__all__ = ["faiss"]
