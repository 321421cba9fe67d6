"""Where compiled code finds things: the rows of the request table and of the corpus table.

A request is a row of int64 in the request table: counters, and the addresses of the int32 arrays
that the request owns. A corpus is a row in the corpus table.
"""

import numpy as np

# Tokens that stand for no token: they never equal one.
END = -1
BOS = -2
# Added to the tokens of removed answers in a corpus's text, which makes them less than BOS.
REMOVED = -(1 << 31)
MAX_CORPUS_TOKEN = (1 << 31) - 3  # the largest for which that is so

CONTEXT, NEAR_ANSWER, CORPUS = range(3)

# Request table.
(
    POSITIONS,  # address: POSITION_FIELDS ints for each position of prompt, BOS, output and a draft
    CAPACITY,
    LENGTH,  # tokens of prompt, BOS and output
    BEGIN,  # index of BOS
    TOKENS,  # address: token table
    TOKENS_MASK,
    NEAR_POSITIONS,  # address: NEAR_POSITION_FIELDS ints for each of BOS, tokens, END of each one
    NEAR_LENGTH,
    NEAR_TOKENS,
    NEAR_TOKENS_MASK,
    NEAR_INFO,  # address: NEAR_INFO_FIELDS ints per near answer
    NEAR_COUNT,
    CLAUSES,  # number of clauses that near answers were found for
    CORPUS_ROW,
    SALT,  # of hashed features: no namespace's are another's
    GENERATION,  # of the corpus when `ranges` was last right
    PREDICTED,  # positions of the trace that hold a prediction
    DRAFTED,  # tokens of the last draft that were proposed
    LEARN,  # positions to learn from
    LEARN_BEGIN,  # index of the token that the first of them should have predicted
    STEPS,
    EMITTED,
    DRAFTED_CONTEXT,
    DRAFTED_NEAR,
    DRAFTED_CORPUS,
    ACCEPTED_CONTEXT,
    ACCEPTED_NEAR,
    ACCEPTED_CORPUS,
    REQUEST_FIELDS,
) = range(29)

# Of a position, side by side, as a visit asks for all: its token, the next position of that token
# to visit, and in near answers the near answer's index + 256 * (1 if the token is in the request's
# prompt + 2 if it is in the near answer's).
TOKEN, NEXT_POSITION, POSITION_FIELDS = range(3)
TAG, NEAR_POSITION_FIELDS = 2, 3

# Ints per near answer in NEAR_INFO.
NEAR_START, NEAR_SIMILARITY, NEAR_RANK, NEAR_CLAUSE, NEAR_ACCEPTED, NEAR_INFO_FIELDS = range(6)

# Corpus table.
(
    CORPUS_TEXT,
    CORPUS_LENGTH,
    CORPUS_ORDER,  # address: the suffix array
    CORPUS_SORTED,  # its length, entries of removed answers included
    RECENT_BEGIN,  # text from here on is not in the suffix array yet
    RECENT_CHAIN,
    RECENT_HEADS,
    RECENT_HEAD_MASK,
    CORPUS_GENERATION,
    CORPUS_FIELDS,
) = range(10)

MAX_NEAR = 32
MAX_ORDER = 24
ORDERS = np.array([1, 2, 3, 4, 5, 6, 8, 11, 16, 24], np.int64)
NUM_ORDERS = 10
MAX_EVIDENCE = 320
EVIDENCE_FEATURES = 6
MAX_CANDIDATES = 6
CANDIDATE_FEATURES = 64
SUCCESSORS = 12  # kept per order
USED_SUCCESSORS = 8  # of them, that become evidence
SKIPPED_ORDERS = np.array([1, 2, 3, 4], np.int64)  # of the tokens before the last
NUM_SKIPPED = 4
USED_SKIPPED = 6  # successors beyond the last token, of those kept per order, that become evidence
CANDIDATE_BUCKETS = 1024
