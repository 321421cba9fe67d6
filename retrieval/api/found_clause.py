"""A clause of a compound question, as those are told who asked it."""

from __future__ import annotations

import msgspec

_MAX_CHARACTERS = 200


class FoundClause(msgspec.Struct, array_like=True, frozen=True):
    """A part of a question that asks something by itself, and what joins it to the one before."""

    text: str
    """As a question of its own, shortened beyond 200 characters."""
    connective: str = ""
    """What stands between the clause before and this one, as "and"; of the first, what the whole
    question begins with, as "although". Empty: punctuation alone."""

    @classmethod
    def shortened(cls, text: str, connective: str) -> FoundClause:
        """Return a clause of bounded length."""
        if len(text) > _MAX_CHARACTERS:
            text = text[: _MAX_CHARACTERS - 1] + "…"
        return cls(text, connective)
