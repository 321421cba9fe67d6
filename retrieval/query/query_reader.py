"""From a prompt, as text or as token ids, to its query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from reprise.retrieval.query.turns import QueryOf, clip

Decode = Callable[[Sequence[int]], str]


class QueryReader:
    """Reads queries.

    Args:
        decode: Token ids to text, special tokens included; without it, token ids have no query.
        query_of: A rendered prompt to its query, see `turns.learn_query_of`; None clips it.
    """

    def __init__(self, *, decode: Decode | None, query_of: QueryOf | None) -> None:
        self._decode, self._query_of = decode, query_of or clip

    def read(self, text: str | None, prompt_token_ids: NDArray[Any] | None) -> str:
        """Return the query of a text, which is one itself, or else of token ids [p]."""
        if text is not None:
            return clip(text)
        if self._decode is None or prompt_token_ids is None:
            return ""
        return self._query_of(self._decode(prompt_token_ids.tolist()))
