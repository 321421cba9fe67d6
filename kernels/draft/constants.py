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

MAX_MATCH = 16
"""Longest match that is told from longer ones."""
MATCH_BUCKETS = 10
"""Buckets of match lengths: 0, 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-15, 16."""
OFFSETS = 12
"""Offsets in a copy that have cells of their own; the last is for all further ones."""
VOTES = 32
"""Entries of a suffix array's range that are asked for the next token."""
MAX_DRAFT = 64
"""Longest draft."""

GENERATION, ANSWER_BEGIN, NEAR_LENGTH, CORPUS_ROW, SLOT_FIELDS = range(5)
"""Fields of a slot: a number that no two requests share, from 1; index of the answer's first token
in the context, which is the prompt's length; used tokens of the slot's near answers; row of the
table of corpora, or -1."""

TEXT_BEGIN, TEXT_LENGTH, ORDER_BEGIN, ORDER_LENGTH, RECENT_BEGIN, CORPUS_FIELDS = range(6)
"""Fields of a corpus: where its text lies in the arena; how much of it may be read; where its
suffix array lies in the arena; entries in it; index in the text from which on it is not sorted."""

MAX_TRIES = 1024.0
"""A cell's counts fade so that they weigh as many tries at most."""
