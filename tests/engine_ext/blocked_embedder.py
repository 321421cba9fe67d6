"""An embedder that a test holds up, so that near answers come late."""

import threading
from collections.abc import Sequence
from typing import Any

from reprise.retrieval.search.embedding import Embedder


class BlockedEmbedder(Embedder):
    """Does not embed before it may go on."""

    def __init__(self) -> None:
        super().__init__("lexical")
        self.go_on = threading.Event()
        self.go_on.set()

    def encode(self, texts: Sequence[str], *args: Any) -> Any:
        assert self.go_on.wait(200)
        return super().encode(texts, *args)
