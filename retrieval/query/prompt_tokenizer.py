"""Token ids to text and prompts to queries, by a tokenizer's name: for other processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reprise.retrieval.query.turns import QueryOf, learn_query_of


class PromptTokenizer:
    """A model's tokenizer and chat template, found by name or folder, never over the network.

    Args:
        name: A folder, a tokenizer.json file, or the name of a cached model.

    Raises:
        OSError: There is no such tokenizer on this machine.
    """

    query_of: QueryOf
    """A rendered prompt to its query, see `turns`."""

    def __init__(self, name: str) -> None:
        if Path(name).is_file():
            from tokenizers import Tokenizer

            self._tokenizer: Any = Tokenizer.from_file(name)
            self.query_of = learn_query_of(None)
        else:
            from transformers import AutoTokenizer

            self._use(AutoTokenizer.from_pretrained(name, local_files_only=True))

    @classmethod
    def wrapping(cls, tokenizer: Any) -> PromptTokenizer:
        """Wrap a tokenizer of transformers, or one that behaves alike."""
        made = cls.__new__(cls)
        made._use(tokenizer)
        return made

    def _use(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        special = [str(token) for token in getattr(tokenizer, "all_special_tokens", ())]
        query_of = learn_query_of(self._render)
        # A plain completion's prompt may begin with one, which nobody typed.
        self.query_of = lambda prompt: _without_ends(query_of(prompt), special)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens added."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return list(getattr(encoded, "ids", encoded))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of the prompt that asks for the next message of a chat.

        Raises:
            ValueError: The tokenizer has no chat template, or it refuses these messages.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise ValueError("a chat needs the folder of a tokenizer with a chat template")
        try:
            return self.encode(self._render([dict(message) for message in messages]))
        except Exception as error:  # templates raise what they like
            raise ValueError(f"the chat template refuses the messages: {error}") from error

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )


def _without_ends(text: str, tokens: Sequence[str]) -> str:
    """Return the text without these tokens, and blanks, at its ends."""
    while True:
        shorter = text.strip()
        for token in tokens:
            shorter = shorter.removeprefix(token).removesuffix(token)
        if shorter == text:
            return text
        text = shorter
