"""Where one text says other words than another."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import NamedTuple

# A word with its apostrophes and such; a character of a script without spaces; a sign; space.
_PIECES = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W぀-ヿ㐀-鿿豈-﫿]+(?:['’.,\-][^\W]+)*|\s+|[^\w\s]")


class Piece(NamedTuple):
    """A part of a text: a word, a sign, or the space between."""

    text: str
    is_changed: bool


class ChangedWords(NamedTuple):
    """A text against the one that it should have been."""

    pieces: list[Piece]
    """Joined they are the text."""
    changed: int
    """Words of it that the other does not have there."""
    missing: int
    """Words of the other that it does not have there."""


def changed_words(text: str, right: str) -> ChangedWords:
    """Compare a text with the right one, word by word; signs count as words, space does not.

    Example:
        >>> changed_words("It costs 5 euros", "It costs 7 euros").changed
        1
    """
    all_pieces = _pieces(text)
    words = [number for number, piece in enumerate(all_pieces) if not piece.isspace()]
    others = [piece for piece in _pieces(right) if not piece.isspace()]
    matcher = SequenceMatcher(None, [all_pieces[number] for number in words], others, False)
    changed: set[int] = set()
    missing = 0
    for kind, begin, end, other_begin, other_end in matcher.get_opcodes():
        if kind != "equal":
            changed.update(words[begin:end])
            missing += max(0, (other_end - other_begin) - (end - begin))
    pieces = [Piece(piece, number in changed) for number, piece in enumerate(all_pieces)]
    return ChangedWords(pieces, len(changed), missing)


def _pieces(text: str) -> list[str]:
    return _PIECES.findall(text)
