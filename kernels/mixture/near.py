"""Near answers as the mixture reads them, laid out on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.kernels.draft.constants import BOS, END
from reprise.kernels.draft.near_row import MAX_ANSWER_TOKENS
from reprise.kernels.mixture.evidence import NearTexts, bucket
from reprise.kernels.mixture.layout import MAX_NEAR
from reprise.kernels.mixture.state import NEAR_FIELDS, TAG_FIRST, TAG_KIND

IntArray = npt.NDArray[np.int32]

FIRST_HIT = 0.5
"""Hits of a near answer that has not been met yet."""
CATCH_UP = 8
"""Tokens since the last draft that the alignment follows; after more it starts anew, as many tokens
back."""
MAX_PROMPT_TOKENS = 1024


def lay_out_near(
    answers: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    similarities: Sequence[float],
    clauses: Sequence[int],
    *,
    own_prompt: Sequence[int],
) -> NearTexts:
    """Lay out near answers with what is known of each; arguments in the same order."""
    tokens: list[int] = []
    tags: list[int] = []
    starts: list[int] = []
    places: dict[int, list[int]] = {}
    own = set(own_prompt)
    for index, (answer, prompt) in enumerate(zip(answers, prompts, strict=True)):
        starts.append(len(tokens))
        theirs = {token & 4095: token for token in prompt[-MAX_PROMPT_TOKENS:]}
        for token in (BOS, *answer[:MAX_ANSWER_TOKENS], END):
            places.setdefault(token, []).append(len(tokens))
            kind = (token in own) + 2 * (theirs.get(token & 4095) == token)
            tags.append(index + 256 * kind)
            tokens.append(token)
    ranks = [
        bucket(sum(other == clause for other in clauses[:index]), 1, 2, 4, 8)
        for index, clause in enumerate(clauses)
    ]
    return NearTexts(
        token_ids=tokens,
        tags=tags,
        similarities=[similarity_bucket(similarity) for similarity in similarities],
        ranks=ranks,
        clauses=clauses,
        starts=starts,
        places=places,
    )


class NearRows(NamedTuple):
    """What the host writes of a request's near answers, see `MixtureState`."""

    token_ids: IntArray  # [t] int32: BOS, tokens, END of each answer
    tags: IntArray  # [t] int32
    info: IntArray  # [n, NEAR_FIELDS] int32, n <= MAX_NEAR


def near_rows(
    answers: Sequence[IntArray],
    prompts: Sequence[IntArray],
    similarities: Sequence[float],
    clauses: Sequence[int],
    *,
    own_prompt: IntArray,
    max_near_tokens: int,
) -> NearRows:
    """Lay out the first MAX_NEAR near answers as the device reads them; arguments in the same
    order. Of an answer that is too long, and of one that no longer fits, the first tokens are
    used."""
    own = np.unique(own_prompt)
    tokens, tags, info = [], [], []
    theirs = np.empty(1 << 12, np.int32)
    start = 0
    for index in range(min(len(answers), MAX_NEAR)):
        room = min(MAX_ANSWER_TOKENS, max_near_tokens - start - 2)
        answer = answers[index][: max(room, 0)]
        if not len(answer):
            break
        theirs.fill(END)
        prompt = prompts[index][-MAX_PROMPT_TOKENS:]
        theirs[prompt & 4095] = prompt
        is_first = np.zeros(len(answer), np.int32)
        is_first[np.unique(answer, return_index=True)[1]] = 1
        kind = np.isin(answer, own) + 2 * (theirs[answer & 4095] == answer)
        tag = index + TAG_KIND * kind + TAG_FIRST * is_first
        tokens.append(np.concatenate(([BOS], answer, [END])))
        tags.append(np.concatenate(([index], tag, [index])))
        rank = bucket(sum(other == clauses[index] for other in clauses[:index]), 1, 2, 4, 8)
        info.append((start, similarity_bucket(similarities[index]), rank, clauses[index]))
        start += len(answer) + 2
    empty = np.zeros(0, np.int32)
    return NearRows(
        np.concatenate([empty, *tokens], dtype=np.int32),
        np.concatenate([empty, *tags], dtype=np.int32),
        np.array(info, np.int32).reshape(-1, NEAR_FIELDS),
    )


def similarity_bucket(similarity: float) -> int:
    """0..7 for a cosine: below 0.4, four steps of 0.1, 0.8-0.9, 0.9-0.97, above."""
    if similarity < 0.4:
        return 0
    if similarity < 0.8:
        return min(4, int((similarity - 0.4) * 10.0) + 1)
    return 5 + (similarity >= 0.9) + (similarity >= 0.97)
