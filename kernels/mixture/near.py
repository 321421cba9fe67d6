"""Near answers as the definition reads them, and what is fixed of them."""

from __future__ import annotations

from collections.abc import Sequence

from reprise.kernels.draft.constants import BOS, END
from reprise.kernels.draft.near_row import MAX_ANSWER_TOKENS
from reprise.kernels.mixture.evidence import NearTexts, bucket

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


def similarity_bucket(similarity: float) -> int:
    """0..7 for a cosine: below 0.4, four steps of 0.1, 0.8-0.9, 0.9-0.97, above."""
    if similarity < 0.4:
        return 0
    if similarity < 0.8:
        return min(4, int((similarity - 0.4) * 10.0) + 1)
    return 5 + (similarity >= 0.9) + (similarity >= 0.97)
