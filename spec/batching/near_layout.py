# mypy: allow-untyped-calls
"""Near answers as drafting reads them: their tokens in one array, and what is known of each."""

import numpy as np
import numpy.typing as npt

from reprise.spec.api.near_answer import IntArray
from reprise.spec.corpus.token_table import COUNT, entry_of, near_table
from reprise.spec.predictor.buckets import rank_bucket, similarity_bucket
from reprise.spec.predictor.row_arrays import Context, open_context
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import (
    BOS,
    END,
    NEAR_ACCEPTED,
    NEAR_CLAUSE,
    NEAR_RANK,
    NEAR_SIMILARITY,
    NEAR_START,
    TAG,
    TOKEN,
)


@compiled
def mark_prompt_tokens(
    positions: IntArray,  # [t, NEAR_POSITION_FIELDS] int32
    near_prompt: IntArray,  # [p] int32
    begin: int,
    end: int,
    own: Context,
    table: IntArray,  # [1 << 12] int32: working space
) -> None:
    """Add to the tags of positions[begin:end] 512 if the token is in the near answer's prompt, and
    256 if it is in ours: what only theirs has is likely to be another token in our answer."""
    table[:] = END
    for i in range(near_prompt.shape[0]):
        table[near_prompt[i] & 4095] = near_prompt[i]
    for k in range(begin, end):
        token = positions[k, TOKEN]
        if table[token & 4095] == token:
            positions[k, TAG] += 512
        if own.table[entry_of(own.table, own.mask, token), COUNT] > 0:
            positions[k, TAG] += 256


@compiled
def lay_out(
    row: npt.NDArray[np.int64],  # [REQUEST_FIELDS]
    tokens: IntArray,  # all responses, one after the other, then all prompts
    sizes: IntArray,  # [2, n] int32: of the responses, of the prompts
    similarities: npt.NDArray[np.float64],  # [n]
    clauses: IntArray,  # [n] int32
    positions: IntArray,  # [t, NEAR_POSITION_FIELDS] int32, out: BOS, response, END of each one
    info: IntArray,  # [n, NEAR_INFO_FIELDS] int32, out
) -> tuple[int, IntArray]:
    """Lay near answers out for drafting; returns how many clauses they are for, and their table."""
    own = open_context(row)
    table = np.empty(1 << 12, np.int32)
    count = sizes.shape[1]
    source, prompt, at, num_clauses = 0, sizes[0].sum(), 0, 0
    for near in range(count):
        end = at + sizes[0, near] + 2
        positions[at, TOKEN], positions[end - 1, TOKEN] = BOS, END
        for k in range(at + 1, end - 1):
            positions[k, TOKEN] = tokens[source]
            source += 1
        positions[at:end, TAG] = near
        near_prompt = tokens[prompt : prompt + sizes[1, near]]
        prompt += sizes[1, near]
        mark_prompt_tokens(positions, near_prompt, at + 1, end - 1, own, table)
        rank = 0
        for other in range(near):
            rank += clauses[other] == clauses[near]
        num_clauses += rank == 0
        info[near, NEAR_START] = at
        info[near, NEAR_SIMILARITY] = similarity_bucket(similarities[near])
        info[near, NEAR_RANK] = rank_bucket(rank)
        info[near, NEAR_CLAUSE] = clauses[near]
        info[near, NEAR_ACCEPTED] = 0
        at = end
    return num_clauses, near_table(positions)
