"""Trace rows as token ids, and the tokenizers that make them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from reprise.eval.replay.traces import TraceRow

IntArray = npt.NDArray[np.int32]

# Ends of an answer, for tokenizers that come without a configuration that names theirs.
_KNOWN_ENDS = ("<|endoftext|>", "<|end|>", "<|im_end|>", "<|eot_id|>", "</s>", "<eos>", "[SEP]")


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded; the message is one line."""


@dataclass(frozen=True)
class ReplayTokenizer:
    """A tokenizer and the token that ends every answer."""

    tokenizer: Tokenizer
    end_token_id: int

    def encode(self, text: str) -> IntArray:
        """Token ids of a text, int32 [n], without special tokens."""
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included; nothing for ids that are none."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text


@dataclass(frozen=True)
class TokenRow:
    """One row of a trace, ready for a replay."""

    request_id: str
    prompt_token_ids: IntArray  # int32 [p]
    response_token_ids: IntArray  # int32 [r], the end token last
    cached_token_ids: IntArray | None  # int32 [c], likewise
    source: TraceRow

    @property
    def warm(self) -> bool:
        """The row only fills the cache."""
        return self.source.warm


def load_tokenizer(path_or_name: str | Path) -> ReplayTokenizer:
    """A `tokenizer.json`, a folder that holds one, or the name of a model on the hub.

    Raises TokenizerError, in one line, if there is none.
    """
    path = Path(path_or_name)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        elif path.exists() or str(path_or_name).startswith((".", os.sep)):
            raise TokenizerError(f"{file}: no such tokenizer file")
        else:
            tokenizer = Tokenizer.from_pretrained(str(path_or_name))
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare exceptions of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TokenizerError(f"tokenizer {path_or_name}: cannot be loaded: {reason}") from None
    return ReplayTokenizer(tokenizer, _end_token_id(tokenizer, file))


def tokenize_rows(rows: Iterable[TraceRow], tokenizer: ReplayTokenizer) -> list[TokenRow]:
    """Every row with its token ids; an end token follows each answer."""
    return [
        TokenRow(
            request_id=f"{number}",
            prompt_token_ids=tokenizer.encode(row.prompt),
            response_token_ids=_ended(row.response, tokenizer),
            cached_token_ids=None if row.cached is None else _ended(row.cached, tokenizer),
            source=row,
        )
        for number, row in enumerate(rows)
    ]


def _ended(text: str, tokenizer: ReplayTokenizer) -> IntArray:
    return np.append(tokenizer.encode(text), np.int32(tokenizer.end_token_id))


def _end_token_id(tokenizer: Tokenizer, file: Path) -> int:
    """The end token that the configuration beside the file names, a well-known one, or a new id."""
    names = list(_KNOWN_ENDS)
    config = file.parent / "tokenizer_config.json"
    if config.is_file():
        named = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
        if isinstance(named, dict):
            named = named.get("content")
        if isinstance(named, str):
            names.insert(0, named)
    for name in names:
        token_id = tokenizer.token_to_id(name)
        if token_id is not None:
            return int(token_id)
    return int(tokenizer.get_vocab_size())
