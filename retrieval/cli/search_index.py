"""The index in Milvus from outside: filled from a tier, and rid of what leaves the tier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.search_url import EMBEDDED, parse_search
from reprise.retrieval.cli.tier_access import batches, tracked
from reprise.retrieval.remote.milvus_index import MilvusIndex
from reprise.retrieval.remote.milvus_removal import MilvusRemoval
from reprise.retrieval.remote.remote_index import RemoteError, RemoteRow
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.near_search import unpack
from reprise.retrieval.tiers.tier import Tier

_TIMEOUT_S = 30.0
Search = Annotated[
    str,
    typer.Option(
        "--search",
        envvar="REPRISE_RETRIEVAL__SEARCH",
        help="milvus://host:port, if the servers search there",
    ),
]
NO_SEARCH = EMBEDDED


def remove_from_index(search: str, keys: Sequence[tuple[str, str]]) -> None:
    """Remove answers (namespace, id), where the servers search beyond memory.

    Raises:
        ValueError: It cannot be reached.
    """
    url = parse_search(search)
    if url is None or not keys:
        return
    by_namespace: dict[str, list[str]] = {}
    for namespace, answer_id in keys:
        by_namespace.setdefault(namespace, []).append(answer_id)
    index = MilvusRemoval(url, timeout_s=_TIMEOUT_S)
    try:
        index.open()
        for namespace, answer_ids in by_namespace.items():
            index.remove(namespace, answer_ids)
    except RemoteError as error:
        raise ValueError(
            f"removed from the tier, but their vectors are still in the search index: {error}"
        ) from error
    finally:
        index.close()


def fill_index(search: str, answers: Iterable[Answer], embedder: Embedder, *, tier: Tier) -> int:
    """Have the answers of a tier that this embedding model embedded held; returns how many.

    Raises:
        ValueError: It cannot be reached.
    """
    url = parse_search(search)
    if url is None:
        return 0
    rows: dict[str, list[RemoteRow]] = {}
    for answer in answers:
        vector = unpack(answer.embedding, embedder.dim)
        if answer.embedder == embedder.identity and vector is not None:
            created_s = answer.created_s + tier.ahead_s
            row = RemoteRow(answer.namespace, answer.answer_id, created_s, vector)
            rows.setdefault(answer.tokenizer_key, []).append(row)
    for tokenizer_key, of_key in rows.items():
        index = MilvusIndex(
            url,
            tokenizer_key=tokenizer_key,
            embedder=embedder.identity,
            dim=embedder.dim,
            timeout_s=_TIMEOUT_S,
        )
        try:
            index.open()
            for batch in batches(tracked(of_key, "Indexing")):
                index.upsert(batch)
            index.settle()
        except RemoteError as error:
            raise ValueError(str(error)) from error
        finally:
            index.close()
    return sum(map(len, rows.values()))
