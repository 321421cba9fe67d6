"""Compound questions to their sub-questions, in English and Chinese.

"How do I cancel my order and will I get a refund?" asks two things that were probably answered
apart. A clause is a part that asks something by itself; a question that asks one thing has none.
The rules run over spaCy's tokens, without trained weights.
"""

from __future__ import annotations

import itertools
import logging
import re
from dataclasses import replace

from reprise.retrieval.query.clause import Clause
from reprise.retrieval.query.clauses_en import EnglishRules
from reprise.retrieval.query.clauses_zh import ChineseRules

logger = logging.getLogger(__name__)
MAX_CLAUSES = 6
# Rules read questions, not documents.
_MAX_CHARACTERS = 2000
# spaCy peels punctuation off a word sign by sign, reading all of it each time.
_MAX_WORD_CHARACTERS = 100
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_SUBORDINATORS = re.compile(
    r"\s*(although|though|even though|even if|if|since|because|while|whereas|unless|as)\b"
    "|(因为|由于|虽然|尽管|既然|如果|要是|假如|即使|就算)",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[^\W\d_]+(?:[ '’-]+[^\W\d_]+)*|&")
_MAX_CONNECTIVE_CHARACTERS = 40
_WORD_CHARACTER = re.compile(r"\w")


class ClauseSplitter:
    """Finds the clauses of questions; not thread-safe.

    Args:
        pipeline: Name of a trained spaCy pipeline, whose parts of speech then say what is a
            verb; None uses a word list.

    Without spaCy, or if the pipeline cannot be loaded, no question has clauses (or the word list
    is used); either is logged once, here.
    """

    def __init__(self, pipeline: str | None = None) -> None:
        self._english: EnglishRules | None = None
        self._chinese: ChineseRules | None = None
        try:
            import spacy

            english, chinese = spacy.blank("en"), spacy.blank("zh")
        except ImportError:
            logger.warning("spaCy is not installed: compound questions are searched as one.")
            return
        except Exception as error:  # beside other versions of what it needs it raises anything
            logger.warning("No spaCy (%s): compound questions are searched as one.", error)
            return
        if pipeline is not None:
            try:
                trained = spacy.load(pipeline)
            except Exception as error:  # a pipeline of another version raises anything
                logger.warning("No spaCy pipeline %r (%s): using rules.", pipeline, error)
            else:
                if trained.lang == "zh":
                    chinese = trained
                else:
                    english = trained
        self._english = EnglishRules(english)
        self._chinese = ChineseRules(chinese)

    def may_be_compound(self, text: str) -> bool:
        """Return whether `split` might find clauses, in some 20 us."""
        rules = self._rules_for(text)
        return rules is not None and rules.may_be_compound(text)

    def clauses(self, text: str) -> list[Clause]:
        """Find at least two clauses, in the order of the text, or none."""
        rules = self._rules_for(text)
        if rules is None or not rules.may_be_compound(text):
            return []
        found = rules.clauses(text)
        return _joined(text, found[:MAX_CLAUSES]) if len(found) > 1 else []

    def split(self, text: str) -> list[str]:
        """Return the clauses as questions of their own; none for a simple question."""
        return [clause.read(text) for clause in self.clauses(text)]

    def _rules_for(self, text: str) -> EnglishRules | ChineseRules | None:
        """Return the rules of the text's language; None for a text that is not read."""
        if self._english is None or not text or len(text) > _MAX_CHARACTERS:
            return None
        chinese = len(_CHINESE.findall(text))
        if chinese and 2 * chinese > len(_WORD_CHARACTER.findall(text)):
            return self._chinese
        too_long = max(map(len, text.split()), default=0) > _MAX_WORD_CHARACTERS
        return None if too_long else self._english


def _joined(text: str, clauses: list[Clause]) -> list[Clause]:
    """Return the clauses with the connectives that stand before them in the text."""
    opening = _SUBORDINATORS.match(text[clauses[0].start :])
    connectives = [opening[0].strip().lower() if opening else ""]
    for one, two in itertools.pairwise(clauses):
        between = _WORDS.search(text[one.end : two.start][:_MAX_CONNECTIVE_CHARACTERS])
        connectives.append(between[0].lower() if between else "")
    return [
        replace(clause, connective=connective)
        for clause, connective in zip(clauses, connectives, strict=True)
    ]
