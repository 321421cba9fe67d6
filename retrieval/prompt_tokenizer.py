"""Token ids to text and prompts to queries, by a tokenizer's name: for other processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .turns import learn_query_of


class PromptTokenizer:
    """A model's tokenizer and chat template, found by name or folder, never over the network.

    Args:
        name: A folder, a tokenizer.json file, or the name of a cached model.

    Raises:
        OSError: There is no such tokenizer on this machine.
    """

    def __init__(self, name: str) -> None:
        if Path(name).is_file():
            from tokenizers import Tokenizer

            self._tokenizer: Any = Tokenizer.from_file(name)
            self.query_of = learn_query_of(None)
        else:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
            self.query_of = learn_query_of(self._render)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens added."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return list(getattr(encoded, "ids", encoded))

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )
