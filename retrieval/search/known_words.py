"""Whether an embedding model has words for the language of what is asked."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence

logger = logging.getLogger(__name__)
Tokenize = Callable[[str], Sequence[str]]

# Han and kana: a vocabulary has them sign by sign, so that it is counted what it has of them.
_HAN = re.compile(r"[\u3400-\u9fff]")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]+")
_WORD = re.compile(r"[^\W\d_]+")
_MAX_CHARACTERS = 300
_MIN_WORDS = 3
# BERT's English vocabulary has some 500 of them, its Chinese one 7,000.
_MIN_HAN = 2000
# Byte-level vocabularies show no signs: one that knows Chinese has pieces of several.
_MAX_PIECES_PER_SIGN = 0.9
# Pieces a word by all-MiniLM-L6-v2's vocabulary, a few questions each: English 1.0 to 1.4, German,
# French, Spanish and Dutch 1.8 to 2.8, Russian, Arabic and Korean above 3.
_MAX_PIECES_PER_WORD = 1.6
# A word that there are no pieces of at all counts as many.
_UNKNOWN_PIECES = 4
_WINDOW = 64


class KnownWords:
    """Judges by a model's vocabulary: a language that it was not made of falls into pieces there.

    Args:
        tokenize: A text to its pieces.
        vocabulary: All pieces.
        unknown: The piece that stands for what has none.
    """

    def __init__(self, tokenize: Tokenize, vocabulary: Iterable[str], *, unknown: str) -> None:
        self._tokenize, self._unknown = tokenize, unknown
        self._knows_han = sum(1 for piece in vocabulary if _HAN.search(piece)) >= _MIN_HAN

    def knows(self, text: str) -> bool | None:
        """Return whether the vocabulary has the words of a text; None: it has too few."""
        text = text[:_MAX_CHARACTERS]
        unspaced = sum(map(len, _UNSPACED.findall(text)))
        words = _WORD.findall(_UNSPACED.sub(" ", text))
        if unspaced > sum(map(len, words)):
            return self._knows_han or self._num_pieces(text) <= _MAX_PIECES_PER_SIGN * unspaced
        if len(words) < _MIN_WORDS:
            return None
        return self._num_pieces(" ".join(words)) <= _MAX_PIECES_PER_WORD * len(words)

    def _num_pieces(self, text: str) -> int:
        pieces = self._tokenize(text)
        unknown = sum(piece == self._unknown for piece in pieces)
        return len(pieces) + (_UNKNOWN_PIECES - 1) * unknown


class LanguageWatch:
    """Warns once where an embedding model does not know the language of most prompts.

    Args:
        words: Of the model; None watches nothing.
        model: Its name.
    """

    def __init__(self, words: KnownWords | None, *, model: str) -> None:
        self._words, self._model = words, model
        self._num_known = self._num_unknown = 0

    def look_at(self, texts: Iterable[str]) -> None:
        """Judge prompts; after each 64, decide."""
        if self._words is None:
            return
        for text in texts:
            known = self._words.knows(text)
            if known is not None:
                self._num_known += known
                self._num_unknown += not known
        if self._num_known + self._num_unknown < _WINDOW:
            return
        if self._num_unknown > self._num_known:
            logger.warning(
                "Most prompts are in a language that the embedding model %s was not made for: near "
                "answers are found less well. Set REPRISE_RETRIEVAL__EMBEDDING_MODEL, for instance "
                "to paraphrase-multilingual-MiniLM-L12-v2, or for Chinese to "
                "BAAI/bge-small-zh-v1.5.",
                self._model,
            )
            self._words = None  # said once
        self._num_known = self._num_unknown = 0
