"""Where a program keeps what its threads hand to one another, while it predicts a token.

A piece of evidence has an index below NUM_PIECES: those of near answers come first, then those of
the context, then those of the corpus, each in the order of the definition. Each kind has as many
indices as it may have pieces at the places that were found; what is not there has token -1.
"""

from reprise.kernels.draft.constants import MAX_DRAFT
from reprise.kernels.mixture.evidence import (
    MAX_CONTEXT_EVIDENCE,
    MAX_CONTEXT_SKIPPED,
    MAX_NEAR_EVIDENCE,
    MAX_NEAR_SKIPPED,
    USED_SUCCESSORS,
)
from reprise.kernels.mixture.layout import MAX_NEAR, NUM_ORDERS

NEAR_PLACES = MAX_NEAR_EVIDENCE + MAX_NEAR
"""Places of the last token that are listed: all near answers may end with it."""
CONTEXT_PLACES = MAX_CONTEXT_EVIDENCE + 2
"""Likewise in the context, of which the prompt and the answer may end with it."""

MOST_NEAR_SKIPPED = MAX_NEAR_SKIPPED + 1
"""Pieces: a place after which a token was skipped is two, so one more than their limit may be."""
MOST_CONTEXT_SKIPPED = MAX_CONTEXT_SKIPPED + 1
NUM_PIECES = 256
assert (
    NEAR_PLACES + MOST_NEAR_SKIPPED + MAX_NEAR + CONTEXT_PLACES + MOST_CONTEXT_SKIPPED
    + NUM_ORDERS * USED_SUCCESSORS <= NUM_PIECES
)  # fmt: skip

VOTES = 32
"""Entries of a suffix array's range that are kept, of which evidence.SAMPLED are used."""
RECENT_PLACES = 64

(
    TOKENS,  # [NUM_PIECES]
    INFOS,  # [NUM_PIECES]: match + 256 * aligned + 512 * aligned and right of late; or its code
    PLACES,  # [128]
    SKIPPED_PLACES,  # [64]
    VOTED,  # [NUM_ORDERS, VOTES]
    SUCCESSORS,  # [NUM_ORDERS, USED_SUCCESSORS]
    NUMBERS,  # [NUM_ORDERS, USED_SUCCESSORS]
    TOTALS,  # [NUM_ORDERS]
    NUM_WORDS,
) = (0, 256, 512, 640, 704, 832, 864, 896, 960)
"""Offsets in int32 scratch, of which there are two parts that take turns, so that addresses depend
on the token: computed once before all of them they would not find room in registers."""

SCORES, BEST_SCORES, NUM_FLOATS = 0, 256, 512
"""Offsets in float32 scratch, likewise: [NUM_PIECES] each."""

DRAFTED, WORDS_IN_ALL = 2 * NUM_WORDS, 2 * NUM_WORDS + MAX_DRAFT
CHANCES, FLOATS_IN_ALL = 2 * NUM_FLOATS, 2 * NUM_FLOATS + MAX_DRAFT
"""What is drafted comes behind both: [MAX_DRAFT]."""
