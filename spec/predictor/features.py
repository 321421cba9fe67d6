# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Where each feature's weights begin in the two weight tables, and the tables' start values.

Weight 0 of either table stays 0: it is the feature that is not there.
"""

from typing import Annotated, Any, NamedTuple

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
from reprise.spec.runtime.layout import NUM_ORDERS, NUM_SKIPPED
from reprise.spec.runtime.tables import address_table, float32, opener

MATCH_CELLS = MATCHES * SECOND_MATCHES
COUNT_CELLS = COUNTS * COUNTS
PROB_BINS = 20
THRESHOLDS = 8
# Hashed features are learned while serving only: token ids mean nothing to another tokenizer. Two
# that share a weight cost little (measured: eight times as many weights gain nothing).
HASHED_TOKENS = 4096
HASHED_TUPLES = 8192
CELL = 49  # (absent or count bucket) x total bucket, in 7 x 7


def _offsets(*sizes: int) -> list[int]:
    return [1 + sum(sizes[:i]) for i in range(len(sizes) + 1)]


# The mixture over evidence.
(
    NEAR_MATCH,  # match x length beyond one substitution
    NEAR_SKIPPED,  # kind x length beyond the substitution
    NEAR_DISTANCE,  # match x distance from the alignment; two more blocks for the skipped kinds
    NEAR_LIKENESS,  # similarity x coarse match
    NEAR_ANSWER_RANK,  # rank x coarse match
    NEAR_PROMPTS,  # in the near answer's prompt, in ours x coarse match
    NEAR_HITS,  # hits x coarse match
    NEAR_CLAUSE_SWITCH,  # tokens left in the leading near answer x its hits
    CONTEXT_MATCH,  # prompt or output x match x length beyond one substitution
    CONTEXT_SKIPPED,
    CONTEXT_RECENCY,  # recency x coarse match
    CORPUS_COUNT,  # order x count x total
    CORPUS_DEPTH,  # orders below the longest x count
    CORPUS_SKIPPED,  # order of the tokens before the last x count x total
    ESCAPE_NEAR,
    ESCAPE_CONTEXT,
    ESCAPE_CORPUS,
    NUM_MIXTURE,
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
    NEAR_CELL,  # min match x count or absent x total
    NEAR_SHARES,  # min match x share there and one shorter
    CONTEXT_CELL,  # min match x count or absent x total
    BEST_EVIDENCE,  # the best evidence's features
    PROB,  # binned log of the mixture's probability, in all and per source
    PRESENCE,  # times in the prompt x times in the output x source
    NEAR_PRESENCE,  # near answers that have it x near answers x source
    CANDIDATE_RANK,  # rank among the candidates
    REACH,  # longest near match x longest context match x longest order
    SHARES,  # near share x corpus share x longest near match x longest order
    PROB_REACH,  # binned probability x longest near match
    PROB_ORDER,  # binned probability x longest order
    ALIGNED_CELL,  # near answers whose pointer is at it x in all; those with recent hits
    ESCAPE_PROB,
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
    NUM_MIXTURE,
    4 * PROB_BINS,
    27,
    7 * 4 * 3,
    5,
    9 * 5 * 5,
    5 * 4 * 4 * 5,
    PROB_BINS * 9,
    PROB_BINS * 5,
    2 * CELL,
    PROB_BINS,
    121,
    132,
    NUM_SKIPPED * CELL,
    HASHED_TOKENS,
    HASHED_TUPLES,
    HASHED_TUPLES,
)


def check_feature_indices(num_features: int) -> None:
    """Raise OverflowError if a table has more weights than the trace's int16 can name: compiled
    code would write elsewhere, as it checks no bounds."""
    max_features = int(np.iinfo(np.int16).max) + 1
    if num_features > max_features:
        raise OverflowError(
            f"features: expected at most {max_features} in a table, came {num_features}"
        )


check_feature_indices(NUM_MIXTURE)
check_feature_indices(NUM_CHOICE)


class Weights(NamedTuple):
    """The two weight tables and, per weight, the sum of squared gradients that sets its rate."""

    mixture: Annotated[Any, float32(NUM_MIXTURE)]
    mixture_squares: Annotated[Any, float32(NUM_MIXTURE)]
    choice: Annotated[Any, float32(NUM_CHOICE)]
    choice_squares: Annotated[Any, float32(NUM_CHOICE)]


FIRST_SQUARE = 0.1


def prior_weights() -> Weights:
    """Make start values by rule: longer matches and higher counts say more, and the choice trusts
    the mixture."""
    mixture = np.zeros(NUM_MIXTURE, np.float32)
    choice = np.zeros(NUM_CHOICE, np.float32)
    match = np.arange(MATCHES)[:, None] * 0.5 + np.arange(SECOND_MATCHES)[None, :] * 0.2
    mixture[NEAR_MATCH : NEAR_MATCH + MATCH_CELLS] = match.ravel() - 1.0
    mixture[NEAR_SKIPPED : NEAR_SKIPPED + 2 * SECOND_MATCHES] = -2.0
    mixture[NEAR_CLAUSE_SWITCH : NEAR_CLAUSE_SWITCH + 4 * HITS] = -2.0
    for region in range(2):
        begin = CONTEXT_MATCH + region * MATCH_CELLS
        mixture[begin : begin + MATCH_CELLS] = match.ravel() - 1.5
    mixture[CONTEXT_SKIPPED : CONTEXT_SKIPPED + 2 * SECOND_MATCHES] = -2.0
    order = np.minimum(np.arange(NUM_ORDERS), 6)[:, None, None] * 0.4
    count = np.arange(COUNTS)[None, :, None] * 0.5
    total = np.arange(COUNTS)[None, None, :] * 0.2
    cells = order + count - total - 2.0
    mixture[CORPUS_COUNT : CORPUS_COUNT + cells.size] = cells.ravel()
    log_prob = (np.arange(PROB_BINS) - 17) * 0.25
    choice[PROB : PROB + PROB_BINS] = log_prob
    choice[ESCAPE_PROB : ESCAPE_PROB + PROB_BINS] = log_prob
    return Weights(
        mixture,
        np.full(NUM_MIXTURE, FIRST_SQUARE, np.float32),
        choice,
        np.full(NUM_CHOICE, FIRST_SQUARE, np.float32),
    )


def weights_table(weights: Weights) -> npt.NDArray[np.int64]:
    """Write down where weights lie that are kept alive, for `open_weights`."""
    return address_table(weights)


open_weights = opener(Weights)
"""The weights behind a table of `weights_table`."""
