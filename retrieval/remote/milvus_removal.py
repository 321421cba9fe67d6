"""A connection to Milvus, and what leaves it: out of the collections of all models."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from reprise.retrieval.api.search_url import MilvusUrl
from reprise.retrieval.remote.milvus_filter import CreatedBefore, WithinNamespace, within
from reprise.retrieval.remote.remote_index import RemoteError

SCHEMA_VERSION = 1
PREFIX = f"reprise_{SCHEMA_VERSION}_"
"""Of our collections' names; another schema has another one."""
OPENS_WITHIN_S = 5.0
_REMOVED_AT_ONCE = 1000
_MAX_REASON = 300
Result = TypeVar("Result")


class MilvusRemoval:
    """Removes answers; thread-safe once open. All calls but `close` may raise `RemoteError`.

    Args:
        url: Which Milvus.
        timeout_s: Most seconds that one call waits.
    """

    def __init__(self, url: MilvusUrl, *, timeout_s: float) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._client: Any = None
        self._lock = threading.Lock()

    def open(self) -> None:
        """Connect, and make what is missing; once more, look whether all is still there."""
        with self._lock:
            if self._client is None:
                self._client = self._trying(self._connect)
            else:
                self._trying(lambda: self._prepare(self._client))

    def remove(self, namespace: str, answer_ids: Sequence[str]) -> None:
        """Remove these answers of a namespace; those not there are no error."""
        for begin in range(0, len(answer_ids), _REMOVED_AT_ONCE):
            self._delete(within(namespace, answer_ids[begin : begin + _REMOVED_AT_ONCE]))

    def remove_namespace(self, namespace: str, *, created_until_s: float) -> None:
        """Remove what was created until then of a namespace."""
        self._delete(within(namespace, created_until_s=created_until_s))

    def remove_older(self, created_s: float) -> None:
        """Remove what was created before then, in all namespaces."""
        self._delete(CreatedBefore(created_s))

    def close(self) -> None:
        """Release what is held. Idempotent."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()
            if self._url.is_lite:
                # It serves the file until told otherwise, and no other process can open it.
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(self._url.uri)

    def _prepare(self, client: Any) -> None:
        """Look whether what is needed is there, before anything else is asked of a client."""

    def _delete(self, where: WithinNamespace | CreatedBefore) -> None:
        """Delete rows: of other tokenizers and embedding models too, since a tier keeps all."""
        names: list[str] = self._call("list_collections")
        for name in names:
            if name.startswith(PREFIX):
                self._call("delete", collection_name=name, filter=where.text)

    def _call(self, method: str, **options: Any) -> Any:
        client = self._client
        if client is None:
            raise RemoteError("milvus: not connected yet")
        call = getattr(client, method)
        return self._trying(lambda: call(timeout=self._timeout_s, **options))

    def _connect(self) -> Any:
        from pymilvus import MilvusClient

        # It logs each failed call with a traceback; the circuit breaker says it in one line. Only
        # now: it sets its level when it is imported.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
        client = MilvusClient(
            uri=self._url.uri,
            token=self._url.token,
            db_name=self._url.database,
            timeout=OPENS_WITHIN_S,
            dedicated=True,
        )
        try:
            self._prepare(client)
        except BaseException:
            client.close()
            raise
        return client

    def _trying(self, call: Callable[[], Result]) -> Result:
        """Call; whatever it raises becomes a `RemoteError` of one line, without secrets."""
        try:
            return call()
        except RemoteError:
            raise
        except Exception as error:  # pymilvus and grpc raise what they like
            text = " ".join(f"milvus: {type(error).__name__}: {_reason(error)}".split())
            for secret in (self._url.token, self._url.token.partition(":")[2]):
                text = text.replace(secret, "***") if secret else text
            raise RemoteError(text[:_MAX_REASON]) from None


def _reason(error: Exception) -> str:
    """Return what an error says in a few words: a gRPC error's status, else its message."""
    code = getattr(error, "code", None)
    status = code() if callable(code) else None
    return getattr(status, "name", "") or str(getattr(error, "message", "") or error)
