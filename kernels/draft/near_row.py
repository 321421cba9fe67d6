"""Near answers as drafting reads them: a row of tokens with marks between the answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reprise.kernels.draft.constants import BOS, END

IntArray = npt.NDArray[np.int32]
MAX_ANSWER_TOKENS = 2048
"""Tokens of one near answer that are used."""

# Arrays already: to make one of a list takes as long as to copy an answer.
_BOS, _END = np.array([BOS], np.int32), np.array([END], np.int32)
_NOTHING = np.zeros(0, np.int32)


def near_row(answers: Sequence[IntArray], *, max_near_tokens: int) -> IntArray:
    """BOS, tokens, END of each answer, the nearest first, int32 [<= max_near_tokens].

    Of an answer that is too long, and of the one that no longer fits, the first tokens are used.
    """
    parts = [_NOTHING]
    room = max_near_tokens
    for answer in answers:
        tokens = answer[: min(MAX_ANSWER_TOKENS, max(0, room - 2))]
        if len(tokens):
            parts += (_BOS, tokens, _END)
            room -= len(tokens) + 2
    return np.concatenate(parts, dtype=np.int32)
