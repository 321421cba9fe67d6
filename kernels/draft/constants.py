"""Layouts of what drafting reads and writes, and its bounds: shared by all backends."""

END = -1
"""Ends each answer in a list of them; no token equals it."""
BOS = -2
"""Begins each answer. A request's own answer begins with one too, which is not stored."""
REMOVED = -(1 << 31)
"""Added to the tokens of removed answers in a corpus's text, which makes them less than BOS."""

CONTEXT, NEAR_ANSWER, CORPUS, RECENT = range(4)
"""Sources. RECENT: the part of the corpus that is not in its suffix array yet."""
NUM_SOURCES = 4
VOTED = 4
"""A copy beside those of the sources: of the token that most matches in the near answers and the
context vote for."""
NUM_COPIES = 5

MAX_MATCH = 16
"""Longest match that is told from longer ones."""
BUCKET_STARTS = (0, 1, 2, 3, 4, 5, 7, 9, 13, 16)
MATCH_BUCKETS = len(BUCKET_STARTS)
"""Buckets of match lengths."""
OFFSETS = 12
"""Offsets in a copy that have cells of their own; the last is for all further ones."""
AGREEMENTS = 3
"""How many other copies begin with the same token is told apart: none, one, more."""
WORTH_TOKENS = 8
"""Of so many first tokens a copy is worth what it is expected to have right."""
VOTING_PLACES = 32
"""Matches that vote: so many first ones in the near answers, as many last ones in the context."""
FIRST_VOTES, VOTES_HALVE = 64, 8
"""The first of them has so many votes for each symbol that matches, the one that comes so many
later half of that."""
ENTRY = 2 * MAX_MATCH
"""Where a match votes is kept as one number: the place times this, and the match, which is less."""
MAX_SECOND = 8
"""Longest match beyond a difference that is told from longer ones."""
VOTES = 32
"""Entries of a suffix array's range that are asked for the next token."""
MAX_DRAFT = 64
"""Longest draft."""
ALL_TOKENS = (1 << 31) - 1
"""The size of a vocabulary that has every token."""

GENERATION, ANSWER_BEGIN, NEAR_LENGTH, CORPUS_ROW, SLOT_FIELDS = range(5)
"""Fields of a slot: a number that no two requests share, from 1; index of the answer's first token
in the context, which is the prompt's length; used tokens of the slot's near answers; row of the
table of corpora, or -1."""

TEXT_BEGIN, TEXT_LENGTH, ORDER_BEGIN, ORDER_LENGTH, RECENT_BEGIN, CORPUS_FIELDS = range(6)
"""Fields of a corpus: where its text lies in the arena; how much of it may be read; where its
suffix array lies in the arena; entries in it; index in the text from which on it is not sorted."""

STEPS, EMITTED, DRAFTED = range(3)
"""Fields of a slot's counts: verification steps, tokens emitted, and tokens drafted by source."""
ACCEPTED = DRAFTED + NUM_SOURCES
"""Tokens accepted by source."""
COUNT_FIELDS = ACCEPTED + NUM_SOURCES

START_TRIES = 8.0
START_RATES = (0.0, 0.25, 0.38, 0.43, 0.5, 0.6, 0.7, 0.8, 0.85, 0.85)
"""What a cell's counts start as: so many tries, and this share of them right by the bucket of its
match and offset together, as far as a copied token's match goes where those before it were right.
The shares are those of copies for answers to grade-school problems (GSM8K), between two models."""
MAX_TRIES = 1024.0
"""A cell's counts fade so that they weigh as many tries at most."""


def match_bucket(match: int) -> int:
    """The bucket of a match length in the tables of hits."""
    return sum(match >= start for start in BUCKET_STARTS) - 1
