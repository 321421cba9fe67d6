"""Where each feature's weights begin in the host predictor's two tables, which are handed in whole.

The predictor's folder is not imported from here; a test compares this with what it says. Weight 0
of either table is that of a feature that is not there.
"""

CONTEXT, NEAR_ANSWER, CORPUS = range(3)

NUM_ORDERS = 4
"""Orders of the corpus that are used: the last 1, 2, 3 and 4 tokens."""
MAX_NEAR = 16
"""Near answers that are used."""
LEAST_CHANCE = 0.004
"""Of a draft up to a token, below which no further one is predicted."""
COUNTS, MATCHES, COARSE, SECONDS, DISTANCES, HITS = 6, 10, 5, 5, 10, 6
THRESHOLDS, PROB_BINS, CELL = 8, 20, 49

(
    NEAR_MATCH,
    NEAR_SKIPPED,
    NEAR_DISTANCE,
    NEAR_LIKENESS,
    NEAR_ANSWER_RANK,
    NEAR_PROMPTS,
    NEAR_HITS,
    NEAR_CLAUSE_SWITCH,
    CONTEXT_MATCH,
    CONTEXT_SKIPPED,
    CONTEXT_RECENCY,
    CORPUS_COUNT,
    CORPUS_DEPTH,
    ESCAPE_NEAR,
    ESCAPE_CONTEXT,
    ESCAPE_CORPUS,
    NUM_MIXTURE,
) = (1, 51, 61, 181, 221, 246, 266, 296, 320, 420, 430, 470, 830, 1016, 1027, 1038, 1050)

(
    ORDER_CELL,
    DEPTH_CELL,
    DEPTH_SHARES,
    NEAR_CELL,
    NEAR_SHARES,
    CONTEXT_CELL,
    BEST_EVIDENCE,
    PROB,
    PRESENCE,
    NEAR_PRESENCE,
    CANDIDATE_RANK,
    REACH,
    SHARES,
    PROB_REACH,
    PROB_ORDER,
    ALIGNED_CELL,
    ESCAPE_PROB,
    ESCAPE_MATCHES,
    ESCAPE_ORDERS,
    HASHED_TOKEN,
    HASHED_PAIR,
    HASHED_TRIPLE,
    NUM_CHOICE,
) = (
    1, 491, 638, 1022, 1414, 1614, 2006, 3056, 3136, 3163, 3247, 3252, 3477, 3877, 4057, 4157,
    4255, 4275, 4396, 4724, 8820, 17012, 25204,
)  # fmt: skip
