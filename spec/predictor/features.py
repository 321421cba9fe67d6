# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Where each feature's weights begin in the two weight tables, and the tables' start values.

Weight 0 of either table stays 0: it is the feature that is not there.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.spec.predictor.buckets import (
    COARSE_MATCHES,
    COUNTS,
    DISTANCES,
    HITS,
    MATCHES,
    RANKS,
    RECENCIES,
    SECOND_MATCHES,
    SIMILARITIES,
)
from reprise.spec.runtime.compiled import compiled, float32_table
from reprise.spec.runtime.layout import NUM_ORDERS, NUM_SKIPPED

MATCH_CELLS = MATCHES * SECOND_MATCHES
COUNT_CELLS = COUNTS * COUNTS
CHANCE_BINS = 20
THRESHOLDS = 8
# Hashed features are learned while serving only: token ids mean nothing to another tokenizer. Two
# that share a weight cost little (measured: eight times as many weights gain nothing).
HASHED_TOKENS = 4096
HASHED_TUPLES = 8192
CELL = 49  # (absent or count bucket) x total bucket, in 7 x 7


def _offsets(*sizes: int) -> list[int]:
    return [1 + sum(sizes[:i]) for i in range(len(sizes) + 1)]


# Attention over components.
(
    NEAR_MATCH,  # match x length beyond one substitution
    NEAR_SKIPPED,  # kind x length beyond the substitution
    NEAR_DISTANCE,  # match x distance from the alignment; two more blocks for the skipped kinds
    NEAR_LIKENESS,  # similarity x coarse match
    NEAR_PLACE,  # rank x coarse match
    NEAR_SLOT,  # in the near answer's prompt, in ours x coarse match
    NEAR_HITS,  # hits x coarse match
    NEAR_TAKEOVER,  # tokens left in the leading near answer x its hits
    CONTEXT_MATCH,  # prompt or output x match x length beyond one substitution
    CONTEXT_SKIPPED,
    CONTEXT_RECENCY,  # recency x coarse match
    CORPUS_COUNT,  # order x count x total
    CORPUS_DEPTH,  # orders below the longest x count
    CORPUS_SKIPPED,  # order of the tokens before the last x count x total
    ESCAPE_NEAR,
    ESCAPE_CONTEXT,
    ESCAPE_CORPUS,
    NUM_ATTENTION,
) = _offsets(
    MATCH_CELLS,
    2 * SECOND_MATCHES,
    (MATCHES + 2) * DISTANCES,
    SIMILARITIES * COARSE_MATCHES,
    RANKS * COARSE_MATCHES,
    4 * COARSE_MATCHES,
    HITS * COARSE_MATCHES,
    4 * HITS,
    2 * MATCH_CELLS,
    2 * SECOND_MATCHES,
    RECENCIES * COARSE_MATCHES,
    NUM_ORDERS * COUNT_CELLS,
    7 * COUNTS,
    NUM_SKIPPED * COUNT_CELLS,
    11,
    11,
    12,
)

# Choice among candidates.
(
    ORDER_CELL,  # order x count or absent x total
    DEPTH_CELL,  # orders below the longest x count or absent x total
    DEPTH_SHARES,  # share at the three longest orders x total
    NEAR_CELL,  # least match x count or absent x total
    NEAR_SHARES,  # least match x share there and one shorter
    CONTEXT_CELL,  # least match x count or absent x total
    BEST_COMPONENT,  # the best component's features
    CHANCE,  # binned log of the attention's chance, in all and per source
    PRESENCE,  # times in the prompt x times in the output x source
    NEAR_PRESENCE,  # near answers that have it x near answers x source
    PLACE,  # rank among the candidates
    REACH,  # longest near match x longest context match x longest order
    SHARES,  # near share x corpus share x longest near match x longest order
    CHANCE_REACH,  # binned chance x longest near match
    CHANCE_ORDER,  # binned chance x longest order
    ALIGNED_CELL,  # near answers whose pointer is at it x in all; those with recent hits
    ESCAPE_CHANCE,
    ESCAPE_MATCHES,
    ESCAPE_ORDERS,
    SKIPPED_CELL,  # order of the tokens before the last x count or absent x total
    HASHED_TOKEN,  # the candidate itself
    HASHED_PAIR,  # the last token and the candidate
    HASHED_TRIPLE,  # the last two tokens and the candidate
    NUM_CHOICE,
) = _offsets(
    NUM_ORDERS * CELL,
    3 * CELL,
    64 * COUNTS,
    THRESHOLDS * CELL,
    THRESHOLDS * 25,
    THRESHOLDS * CELL,
    NUM_ATTENTION,
    4 * CHANCE_BINS,
    27,
    7 * 4 * 3,
    5,
    9 * 5 * 5,
    5 * 4 * 4 * 5,
    CHANCE_BINS * 9,
    CHANCE_BINS * 5,
    2 * CELL,
    CHANCE_BINS,
    121,
    132,
    NUM_SKIPPED * CELL,
    HASHED_TOKENS,
    HASHED_TUPLES,
    HASHED_TUPLES,
)


def check_feature_indices(num_features: int) -> None:
    """Raise OverflowError if a table has more weights than the trail's int16 can name: compiled
    code would write elsewhere, as it checks no bounds."""
    most = int(np.iinfo(np.int16).max) + 1
    if num_features > most:
        raise OverflowError(f"features: expected at most {most} in a table, came {num_features}")


check_feature_indices(NUM_ATTENTION)
check_feature_indices(NUM_CHOICE)


class Weights(NamedTuple):
    """The two weight tables and, per weight, the sum of squared gradients that sets its rate."""

    attention: Any  # [NUM_ATTENTION] float32
    attention_squares: Any  # [NUM_ATTENTION] float32
    choice: Any  # [NUM_CHOICE] float32
    choice_squares: Any  # [NUM_CHOICE] float32


FIRST_SQUARE = 0.1


def prior_weights() -> Weights:
    """Start values by rule: longer matches and higher counts say more; choice trusts attention."""
    attention = np.zeros(NUM_ATTENTION, np.float32)
    choice = np.zeros(NUM_CHOICE, np.float32)
    match = np.arange(MATCHES)[:, None] * 0.5 + np.arange(SECOND_MATCHES)[None, :] * 0.2
    attention[NEAR_MATCH : NEAR_MATCH + MATCH_CELLS] = match.ravel() - 1.0
    attention[NEAR_SKIPPED : NEAR_SKIPPED + 2 * SECOND_MATCHES] = -2.0
    attention[NEAR_TAKEOVER : NEAR_TAKEOVER + 4 * HITS] = -2.0
    for region in range(2):
        begin = CONTEXT_MATCH + region * MATCH_CELLS
        attention[begin : begin + MATCH_CELLS] = match.ravel() - 1.5
    attention[CONTEXT_SKIPPED : CONTEXT_SKIPPED + 2 * SECOND_MATCHES] = -2.0
    order = np.minimum(np.arange(NUM_ORDERS), 6)[:, None, None] * 0.4
    count = np.arange(COUNTS)[None, :, None] * 0.5
    total = np.arange(COUNTS)[None, None, :] * 0.2
    cells = order + count - total - 2.0
    attention[CORPUS_COUNT : CORPUS_COUNT + cells.size] = cells.ravel()
    log_chance = (np.arange(CHANCE_BINS) - 17) * 0.25
    choice[CHANCE : CHANCE + CHANCE_BINS] = log_chance
    choice[ESCAPE_CHANCE : ESCAPE_CHANCE + CHANCE_BINS] = log_chance
    return Weights(
        attention,
        np.full(NUM_ATTENTION, FIRST_SQUARE, np.float32),
        choice,
        np.full(NUM_CHOICE, FIRST_SQUARE, np.float32),
    )


def weights_table(weights: Weights) -> npt.NDArray[np.int64]:
    """Addresses [4] int64 by which compiled code finds weights that are kept alive."""
    return np.array([table.ctypes.data for table in weights], np.int64)


@compiled
def open_weights(table):
    """The weights behind a table of `weights_table`."""
    return Weights(
        float32_table(table[0], (NUM_ATTENTION,)),
        float32_table(table[1], (NUM_ATTENTION,)),
        float32_table(table[2], (NUM_CHOICE,)),
        float32_table(table[3], (NUM_CHOICE,)),
    )
