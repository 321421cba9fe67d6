"""Vectors of half the size, in one block: FAISS compares them as they lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reprise.retrieval.search.faiss_library import faiss

FloatArray = NDArray[np.float32]
KIND = faiss.ScalarQuantizer.QT_fp16
"""How FAISS is to hold them."""


class HalfVectors:
    """Float16 [n, dim], by position, searched one by one; not thread-safe.

    Memory grows by doubling. What is cut off or overwritten is gone.
    """

    def __init__(self, dim: int) -> None:
        self._index = faiss.IndexScalarQuantizer(dim, KIND, faiss.METRIC_INNER_PRODUCT)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def append(self, vector: FloatArray) -> None:
        """Add float32 [dim] at the end."""
        self._index.add(np.asarray(vector, np.float32)[None])

    def rows(self, begin: int, end: int) -> FloatArray:
        """Return float32 [end - begin, dim]."""
        if begin == end:
            return np.zeros((0, self._index.d), np.float32)
        rows: FloatArray = self._index.reconstruct_n(begin, end - begin)
        return rows

    def move_last_to(self, position: int) -> None:
        """Put the last one in the place of another, which is gone."""
        codes = codes_of(self._index)
        codes[position] = codes[-1]
        self.cut(len(self) - 1)

    def cut(self, count: int) -> None:
        """Keep the first `count`, and overwrite the others."""
        if count == len(self):
            return
        codes_of(self._index)[count:] = 0
        self._index.codes.resize(count * self._index.code_size)
        self._index.ntotal = count

    def release(self) -> None:
        """Give back memory that was cut off."""
        index = faiss.IndexScalarQuantizer(self._index.d, KIND, faiss.METRIC_INNER_PRODUCT)
        if len(self):
            index.add(self.rows(0, len(self)))  # float16 either way: nothing is rounded anew
        self._index = index

    def search(self, vectors: FloatArray, count: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """Return cosines and positions [n, count] of the nearest to float32 [n, dim]; `count` is
        no more than there are."""
        cosines, positions = self._index.search(vectors, count)
        return cosines, positions


def codes_of(index: object) -> NDArray[np.uint8]:
    """Return what a scalar-quantized index holds, uint8 [n, bytes], in its own memory; good until
    it is next added to."""
    view: NDArray[np.uint8] = faiss.rev_swig_ptr(  # type: ignore[attr-defined, unused-ignore]
        index.codes.data(),  # type: ignore[attr-defined]
        index.ntotal * index.code_size,  # type: ignore[attr-defined]
    )
    return view.reshape(index.ntotal, index.code_size)  # type: ignore[attr-defined]
