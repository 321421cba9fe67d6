"""Answer ids by vector in Milvus, or in Milvus Lite, which is the same interface on one file.

One collection for what may be drafted from together and was embedded alike:

    reprise_1_<digest of tokenizer key, embedding model and dimensions>

    row_id      VARCHAR, primary: digest of namespace and answer id
    namespace   VARCHAR, partition key: digest of the namespace
    answer_id   VARCHAR
    created_s   DOUBLE, seconds since 1970
    vector      FLOAT_VECTOR, L2-normalised, by inner product

The number in the name is the schema's: another one has collections of its own, so that old and new
replicas may share a Milvus. No token, prompt or response is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reprise.retrieval.api.answer import digest
from reprise.retrieval.api.search_url import MilvusUrl
from reprise.retrieval.remote.milvus_filter import (
    CREATED,
    DIGEST_LENGTH,
    NAMESPACE,
    ROW_ID,
    partition_of,
    row_of,
    within,
)
from reprise.retrieval.remote.milvus_removal import OPENS_WITHIN_S, PREFIX, MilvusRemoval
from reprise.retrieval.remote.remote_index import FloatArray, RemoteError, RemoteIndex, RemoteRow

MAX_ID_BYTES = 128
"""Of an answer's id; one with a longer id is not held here."""
_ANSWER_ID, _VECTOR = "answer_id", "vector"
_FIELDS = {ROW_ID, NAMESPACE, _ANSWER_ID, CREATED, _VECTOR}
# As in the index in memory.
_NEIGHBOURS, _BUILD_BREADTH, _SEARCH_BREADTH = 16, 60, 96
# Milvus Lite compares what it has not flushed row by row, in Python.
_LITE_FLUSH_ROWS = 64
_LITE_VERSIONS = "milvus_lite"
"""What Milvus Lite calls itself, on a file or on a port."""


class MilvusIndex(MilvusRemoval, RemoteIndex):
    """Thread-safe once open.

    Args:
        url: Which Milvus.
        tokenizer_key: Of the answers: they are drafted from where it is the same.
        embedder: Identity of what made the vectors.
        dim: Of the vectors.
        timeout_s: Most seconds that one call waits.
    """

    def __init__(
        self, url: MilvusUrl, *, tokenizer_key: str, embedder: str, dim: int, timeout_s: float
    ) -> None:
        super().__init__(url, timeout_s=timeout_s)
        self._dim = dim
        name = digest(tokenizer_key.encode(), embedder.encode(), str(dim).encode(), size=12)
        self.collection = PREFIX + name.hex()
        self._num_unsettled, self._is_lite = 0, False

    def upsert(self, rows: Sequence[RemoteRow]) -> None:
        entities = [
            {
                ROW_ID: row_of(row.namespace, row.answer_id),
                NAMESPACE: partition_of(row.namespace),
                _ANSWER_ID: row.answer_id,
                CREATED: row.created_s,
                _VECTOR: np.asarray(row.vector, np.float32),
            }
            for row in rows
            if len(row.answer_id.encode("utf-8", "replace")) <= MAX_ID_BYTES
        ]
        if entities:
            self._call("upsert", collection_name=self.collection, data=entities)
            self._num_unsettled += len(entities)

    def search(
        self, namespace: str, vectors: FloatArray, count: int
    ) -> list[list[tuple[str, float]]]:
        where = within(namespace)
        found = self._call(
            "search",
            collection_name=self.collection,
            data=list(vectors),
            limit=count,
            filter=where.text,
            output_fields=[_ANSWER_ID, NAMESPACE],
            search_params={"params": {"ef": max(count, _SEARCH_BREADTH)}},
            consistency_level="Eventually",
        )
        return [
            [
                (hit["entity"][_ANSWER_ID], float(hit["distance"]))
                for hit in row
                # The filter holds; that it was looked at is not left to somebody else's word.
                if hit["entity"].get(NAMESPACE) == where.namespace
            ]
            for row in found
        ]

    def settle(self) -> None:
        if self._is_lite and self._num_unsettled >= _LITE_FLUSH_ROWS:
            self._num_unsettled = 0
            self._call("flush", collection_name=self.collection)

    def _prepare(self, client: Any) -> None:
        """Make the collection where it is missing, and look whether it is as it should be."""
        version = str(client.get_server_version(timeout=OPENS_WITHIN_S))
        self._is_lite = version.replace("-", "_").startswith(_LITE_VERSIONS)
        if not client.has_collection(self.collection, timeout=OPENS_WITHIN_S):
            self._make_collection(client)
        self._check_schema(client.describe_collection(self.collection, timeout=OPENS_WITHIN_S))
        client.load_collection(self.collection, timeout=OPENS_WITHIN_S)

    def _make_collection(self, client: Any) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(ROW_ID, DataType.VARCHAR, is_primary=True, max_length=DIGEST_LENGTH)
        schema.add_field(
            NAMESPACE, DataType.VARCHAR, is_partition_key=True, max_length=DIGEST_LENGTH
        )
        schema.add_field(_ANSWER_ID, DataType.VARCHAR, max_length=MAX_ID_BYTES)
        schema.add_field(CREATED, DataType.DOUBLE)
        schema.add_field(_VECTOR, DataType.FLOAT_VECTOR, dim=self._dim)
        index = client.prepare_index_params()
        index.add_index(
            _VECTOR,
            index_type="HNSW",
            metric_type="IP",
            params={"M": _NEIGHBOURS, "efConstruction": _BUILD_BREADTH},
        )
        client.create_collection(
            self.collection, schema=schema, index_params=index, timeout=OPENS_WITHIN_S
        )

    def _check_schema(self, description: dict[str, Any]) -> None:
        """Check what a collection holds.

        Raises:
            RemoteError: It is another's, for all its name.
        """
        fields = {field["name"]: field for field in description["fields"]}
        dim = fields.get(_VECTOR, {}).get("params", {}).get("dim")
        is_partitioned = fields.get(NAMESPACE, {}).get("is_partition_key", False)
        if set(fields) != _FIELDS or int(dim or 0) != self._dim or not is_partitioned:
            raise RemoteError(
                f"milvus: collection {self.collection} is of another schema: expected "
                f"{', '.join(sorted(_FIELDS))} with {self._dim} dimensions"
            )
