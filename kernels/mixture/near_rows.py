# mypy: allow-untyped-calls, allow-untyped-decorators
"""Near answers laid out on the host, in the thread that launches steps: the part that takes time is
compiled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from reprise.kernels.draft.constants import BOS, END
from reprise.kernels.draft.near_row import fitting, row_of
from reprise.kernels.mixture.evidence import bucket
from reprise.kernels.mixture.layout import MAX_NEAR
from reprise.kernels.mixture.near import MAX_PROMPT_TOKENS, similarity_bucket
from reprise.kernels.mixture.state import NEAR_FIELDS, TAG_FIRST, TAG_KIND

IntArray = npt.NDArray[np.int32]

_NOTHING = np.zeros(0, np.int32)
_compiled = numba.njit(cache=True, nogil=True)


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
    used = list(takewhile(len, fitting(answers[:MAX_NEAR], max_near_tokens=max_near_tokens)))
    info = []
    start = 0
    for index, (answer, clause) in enumerate(zip(used, clauses, strict=False)):
        rank = bucket(clauses[:index].count(clause), 1, 2, 4, 8)
        info.append((start, similarity_bucket(similarities[index]), rank, clause))
        start += len(answer) + 2
    token_ids = row_of(used)
    theirs = [prompt[-MAX_PROMPT_TOKENS:] for prompt in prompts[: len(used)]]
    tags = _tags_of(
        token_ids,
        np.concatenate([_NOTHING, *theirs], dtype=np.int32),
        np.array([len(prompt) for prompt in theirs], np.int32),
        own_prompt,
    )
    return NearRows(token_ids, tags, np.array(info, np.int32).reshape(-1, NEAR_FIELDS))


def warm_up() -> None:
    """Load or make the compiled code, so that no step waits for it."""
    near_rows([], [], [], [], own_prompt=_NOTHING, max_near_tokens=0)


@_compiled
def _tags_of(
    token_ids: IntArray,  # [t] int32: BOS, tokens, END of each answer
    prompts: IntArray,  # [p] int32: those of the answers, one after the other
    prompt_sizes: IntArray,  # [n] int32
    own_prompt: IntArray,  # [o] int32
) -> IntArray:
    """Return the tag of each token, [t] int32."""
    size = 1
    while size < 2 * len(token_ids):
        size *= 2
    table = np.full(size, END, np.int32)  # each token that is there, once
    entries = np.zeros(len(token_ids), np.int32)  # where each one is in the table
    for k, token in enumerate(token_ids):
        if token >= 0:
            entries[k] = _entry_of(table, token)
            table[entries[k]] = token
    is_own = np.zeros(size, np.int32)
    for token in own_prompt:
        is_own[_entry_of(table, token)] = 1
    tags = np.empty(len(token_ids), np.int32)
    latest = np.full(size, -1, np.int32)  # of each token, the answer that had it last
    their_token = np.empty(1 << 12, np.int32)
    index, prompt_end = -1, 0
    for k, token in enumerate(token_ids):
        if token == BOS:
            index += 1
            their_token[:] = END
            for theirs in prompts[prompt_end : prompt_end + prompt_sizes[index]]:
                their_token[theirs & 4095] = theirs
            prompt_end += prompt_sizes[index]
        tags[k] = index
        if token >= 0:
            entry = entries[k]
            kind = is_own[entry] + 2 * (their_token[token & 4095] == token)
            tags[k] += TAG_KIND * kind + TAG_FIRST * (latest[entry] != index)
            latest[entry] = index
    return tags


@_compiled
def _entry_of(
    table: IntArray,  # [s] int32, s a power of two, of which half at least is END
    token: int,
) -> int:
    """Return the entry of a token in the table: where it is, or could be."""
    last = len(table) - 1
    entry = ((token * 2654435761) >> 15) & last
    while table[entry] != token and table[entry] != END:
        entry = (entry + 1) & last
    return entry
