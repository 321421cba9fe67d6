"""Searches for many texts through one retriever, so many at a time."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Sequence
from typing import Protocol

from reprise.retrieval.api.near_answer import NearAnswer

_LOOK_S = 0.002


class _Searcher(Protocol):
    """What is needed of a retriever."""

    def submit(self, request_id: str, *, namespace: str, text: str | None = None) -> None: ...

    def poll(self, request_id: str) -> list[NearAnswer] | None: ...

    def discard(self, request_id: str) -> None: ...


def search_all(
    searcher: _Searcher,
    texts: Sequence[str],
    *,
    namespace: str,
    max_concurrent: int,
    timeout_s: float,
) -> list[list[NearAnswer]]:
    """Return the near answers to each text; none to those that are not found in time.

    Args:
        searcher: A retriever.
        texts: Queries.
        namespace: Of all of them.
        max_concurrent: Most searches under way at any time.
        timeout_s: For all of them together.
    """
    found: list[list[NearAnswer]] = [[] for _ in texts]
    deadline_s = time.monotonic() + timeout_s
    prefix = f"search-{secrets.token_hex(8)}"
    waiting = iter(range(len(texts)))
    under_way: set[int] = set()
    while True:
        for place in itertools.islice(waiting, max_concurrent - len(under_way)):
            searcher.submit(f"{prefix}-{place}", namespace=namespace, text=texts[place])
            under_way.add(place)
        if not under_way or time.monotonic() > deadline_s:
            break
        for place in sorted(under_way):
            near_answers = searcher.poll(f"{prefix}-{place}")
            if near_answers is not None:
                found[place] = near_answers
                under_way.remove(place)
                searcher.discard(f"{prefix}-{place}")
        if under_way:
            time.sleep(_LOOK_S)
    for place in under_way:
        searcher.discard(f"{prefix}-{place}")
    return found
