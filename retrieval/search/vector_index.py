"""Nearest vectors of one namespace: exact while small, mostly a graph beyond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprise.retrieval.search.faiss_library import faiss
from reprise.retrieval.search.half_vectors import KIND, HalfVectors, codes_of

FloatArray = NDArray[np.float32]

# Recall@8 stays above 0.95 where vectors have no neighbourhoods too: decision 34.
_NEIGHBOURS = 32
_BUILD_BREADTH = 100
_SEARCH_BREADTH = 128
GRAPH = f"hnsw{_NEIGHBOURS}-f16"
"""Names the kind of graph: one of another kind, from a file, is not gone on with."""
# Beside a graph, so few vectors are still searched one by one.
_TAIL = 1024
# Moved into the graph in one go: some 15 ms, which a waiting prompt can bear.
_STEP = 16
_REBUILD_FROM_DEAD_SHARE = 0.3
# The dead may lie close together, as answers that were folded into one: where so few are alive of
# what is nearest, the living behind them are looked for among as many times more.
_WIDER = 4
_MAX_WANTED = 4096


@dataclass(frozen=True, slots=True)
class VectorParts:
    """What a vector index holds, to be written to a file and read back.

    `graph` is a faiss index that only `VectorIndex.maintain` changes.
    """

    graph: Any | None
    graph_ids: list[int]
    """Id of each vector of `graph`; -1 for the dead."""
    tail_ids: list[int]
    tail: FloatArray
    """float32 [tail_ids, dim]"""


class _Tail:
    """Vectors searched one by one; adding and removing cost nothing worth counting."""

    def __init__(self, dim: int) -> None:
        self._vectors = HalfVectors(dim)
        self.ids: list[int] = []
        self._position_of: dict[int, int] = {}
        self._most = 0

    def add(self, vector_id: int, vector: FloatArray) -> None:
        self._vectors.append(vector)
        self._position_of[vector_id] = len(self.ids)
        self.ids.append(vector_id)
        self._most = max(self._most, len(self.ids))

    def vector(self, vector_id: int) -> FloatArray | None:
        position = self._position_of.get(vector_id)
        return None if position is None else self._vectors.rows(position, position + 1)[0]

    def rows(self) -> FloatArray:
        return self._vectors.rows(0, len(self.ids))

    def remove(self, vector_id: int) -> None:
        position = self._position_of.pop(vector_id, None)
        if position is None:
            return
        last = self.ids.pop()
        if last != vector_id:  # the last one takes the empty place
            self.ids[position] = last
            self._position_of[last] = position
        self._vectors.move_last_to(position)

    def take(self, count: int) -> tuple[list[int], FloatArray]:
        """Remove some; their ids and vectors."""
        begin = max(0, len(self.ids) - count)
        taken, rows = self.ids[begin:], self._vectors.rows(begin, len(self.ids))
        self._vectors.cut(begin)
        del self.ids[begin:]
        for vector_id in taken:
            del self._position_of[vector_id]
        if 4 * begin < self._most > 4 * _TAIL:
            self._vectors.release()
            self._most = begin
        return taken, rows

    def search(self, vectors: FloatArray, count: int) -> list[list[tuple[int, float]]]:
        held = len(self.ids)
        if not held:
            return [[] for _ in vectors]
        cosines, positions = self._vectors.search(vectors, min(count, held))
        return [
            [(self.ids[p], c) for p, c in zip(row, row_cosines, strict=True) if p >= 0]
            for row, row_cosines in zip(positions.tolist(), cosines.tolist(), strict=True)
        ]


class _Graph:
    """An HNSW graph that only grows; the dead are skipped, and gone when it is rebuilt."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.ids: list[int] = []
        self.position_of: dict[int, int] = {}

    @property
    def num_dead(self) -> int:
        return len(self.ids) - len(self.position_of)

    def add(self, ids: list[int], vectors: FloatArray) -> None:
        self.index.add(vectors)
        self.name(ids)

    def name(self, ids: list[int]) -> None:
        """Give the next vectors their ids; -1 for the dead."""
        for vector_id in ids:
            if vector_id >= 0:
                self.position_of[vector_id] = len(self.ids)
            self.ids.append(vector_id)

    def erase_dead(self) -> None:
        """Overwrite the vectors of the dead. Their links stay, so that the living are found through
        them."""
        storage = faiss.downcast_index(self.index.storage)  # type: ignore[attr-defined, unused-ignore]
        dead = [p for p, i in enumerate(self.ids) if self.position_of.get(i, -1) != p]
        codes_of(storage)[dead] = 0

    def vectors(self, positions: list[int]) -> FloatArray:
        rows: FloatArray = np.stack([self.index.reconstruct(p) for p in positions])
        return rows

    def search(self, vectors: FloatArray, count: int) -> list[list[tuple[int, float]]]:
        wanted = min(count + min(self.num_dead, _SEARCH_BREADTH), len(self.ids))
        found = self._search(vectors, wanted)
        most = min(_MAX_WANTED, len(self.ids)) if self.num_dead else 0
        while wanted < most:
            crowded = [r for r, row in enumerate(found) if _WIDER * len(row) < wanted]
            if not crowded:
                break
            wanted = min(_WIDER * wanted, most)
            for r, row in zip(crowded, self._search(vectors[crowded], wanted), strict=True):
                found[r] = row
        return found

    def _search(self, vectors: FloatArray, wanted: int) -> list[list[tuple[int, float]]]:
        """Return the living among the `wanted` nearest of each row."""
        cosines, positions = self.index.search(vectors, max(1, wanted))
        found = []
        for row, row_cosines in zip(positions.tolist(), cosines.tolist(), strict=True):
            live = []
            for position, cosine in zip(row, row_cosines, strict=True):
                vector_id = self.ids[position] if position >= 0 else -1
                if self.position_of.get(vector_id, -1) == position >= 0:
                    live.append((vector_id, cosine))
            found.append(live)
        return found


class VectorIndex:
    """L2-normalised vectors by non-negative 64-bit id, searched by cosine; not thread-safe.

    They are held in float16.

    Beyond `exact_search_limit` vectors, `maintain` moves them step by step into an HNSW graph;
    what it has not moved yet is searched one by one, so that every vector is found at once.

    Args:
        dim: Length of each vector.
        exact_search_limit: Vectors up to which the search is exact.
        parts: What it begins with.
    """

    def __init__(
        self,
        dim: int,
        *,
        exact_search_limit: int = 20_000,
        parts: VectorParts | None = None,
    ) -> None:
        # Of the calling thread, which is to use the index: more would fight with the engine for
        # its cores, and single vectors gain nothing from them.
        faiss.omp_set_num_threads(1)
        self.dim = dim
        self._limit = exact_search_limit
        self._tail = _Tail(dim)
        self._graph: _Graph | None = None
        self._successor: _Graph | None = None
        self._copied = 0
        if parts is not None:
            self._begin_with(parts)

    def __len__(self) -> int:
        graph = self._graph
        return len(self._tail.ids) + (len(graph.position_of) if graph is not None else 0)

    @property
    def num_waiting(self) -> int:
        """Vectors that `maintain` has yet to move into the graph."""
        return 0 if self._graph is None else max(0, len(self._tail.ids) - _TAIL)

    def add(self, vector_id: int, vector: FloatArray) -> None:
        """Add float32 [dim] under an id that was never in the index."""
        self._tail.add(vector_id, vector)

    def remove(self, vector_id: int) -> None:
        """Remove an id; one that is not there is no error."""
        self._tail.remove(vector_id)
        for graph in (self._graph, self._successor):
            if graph is not None:
                graph.position_of.pop(vector_id, None)

    def erase_removed(self) -> None:
        """Overwrite what is left of vectors that were removed."""
        for graph in (self._graph, self._successor):
            if graph is not None and graph.num_dead:
                graph.erase_dead()

    def vector(self, vector_id: int) -> FloatArray | None:
        """Return float32 [dim] of an id; None if it is not there."""
        graph = self._graph
        if graph is not None and vector_id in graph.position_of:
            row: FloatArray = graph.index.reconstruct(graph.position_of[vector_id])
            return row
        return self._tail.vector(vector_id)

    def parts(self) -> VectorParts:
        """Return what it holds now; stays as it is until `maintain` is called next."""
        graph = self._graph
        if graph is None:
            return VectorParts(None, [], list(self._tail.ids), self._tail.rows())
        live = [i if graph.position_of.get(i, -1) == p else -1 for p, i in enumerate(graph.ids)]
        return VectorParts(graph.index, live, list(self._tail.ids), self._tail.rows())

    def search(self, vectors: FloatArray, count: int) -> list[list[tuple[int, float]]]:
        """Return the `count` nearest (id, cosine) for each row of float32 [n, dim], nearest
        first."""
        found = self._tail.search(vectors, count)
        if self._graph is not None and self._graph.ids:
            for row, more in zip(found, self._graph.search(vectors, count), strict=True):
                row.extend(more)
                row.sort(key=lambda pair: -pair[1])
                del row[count:]
        return found

    def maintain(self) -> bool:
        """Do one step of upkeep; returns whether there is more to do."""
        if self._successor is not None:
            self._copy_some()
            return True
        waiting = len(self._tail.ids)
        if self._graph is None:
            if waiting <= self._limit:
                return False
            self._graph = self._new_graph()
        if waiting > _TAIL:
            self._graph.add(*self._tail.take(_STEP))
            return True
        if self._graph.num_dead > max(_TAIL, _REBUILD_FROM_DEAD_SHARE * len(self._graph.ids)):
            self._successor, self._copied = self._new_graph(), 0
            return True
        return False

    def _begin_with(self, parts: VectorParts) -> None:
        for vector_id, vector in zip(parts.tail_ids, parts.tail, strict=True):
            self._tail.add(vector_id, vector)
        if parts.graph is not None:
            parts.graph.hnsw.efSearch = _SEARCH_BREADTH
            self._graph = _Graph(parts.graph)
            self._graph.name(parts.graph_ids)

    def _new_graph(self) -> _Graph:
        hnsw = faiss.IndexHNSWSQ(
            self.dim,
            KIND,  # type: ignore[arg-type, unused-ignore]
            _NEIGHBOURS,
            faiss.METRIC_INNER_PRODUCT,
        )
        hnsw.hnsw.efConstruction = _BUILD_BREADTH
        hnsw.hnsw.efSearch = _SEARCH_BREADTH
        return _Graph(hnsw)

    def _copy_some(self) -> None:
        """Copy some of the living into the graph that will replace the present one."""
        old, new = self._graph, self._successor
        assert old is not None
        assert new is not None
        positions = range(self._copied, min(self._copied + _STEP, len(old.ids)))
        live = [p for p in positions if old.position_of.get(old.ids[p], -1) == p]
        if live:
            new.add([old.ids[p] for p in live], old.vectors(live))
        self._copied = positions.stop
        if self._copied >= len(old.ids):
            self._graph, self._successor = new, None
