"""What each token adds to a text, where a character may take several tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
_MAX_HELD = 8
"""Tokens of one character; beyond them the text has such a sign itself."""


def token_texts(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return the text that each token adds; joined they are the whole.

    Of the tokens of one character the last one has it, and those before have nothing. Tokens are
    decoded behind the ones before them, as some tokenizers drop the space that a text begins with.

    Example:
        >>> token_texts([0, 1], lambda ids: "".join("ab"[i] for i in ids))
        ['a', 'b']
    """
    texts: list[str] = []
    begin = known = 0
    for number in range(len(token_ids)):
        is_last = number + 1 == len(token_ids)
        text = decode(token_ids[begin : number + 1])
        if text.endswith(_INCOMPLETE) and not is_last and number - known < _MAX_HELD:
            texts.append("")
            continue
        texts.append(text[len(decode(token_ids[begin:known])) :])
        begin, known = known, number + 1
    return texts
