"""What a replay asks of every drafting method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from reprise.engine_ext.answer_page.records import SeenAnswer
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.spec.api.recorded_steps import DraftedToken


def unknown_origins(draft: Sequence[int], source: str = "") -> list[DraftedToken]:
    """Return a draft's tokens of a method that does not say where they came from, or knows one
    source only."""
    return [DraftedToken(int(token), source) for token in draft]


class Drafter(Protocol):
    """A way to draft, driven by one request at a time.

    Only `start`, `propose` and `observe` are part of an engine step, and only they are timed.
    """

    def prepare(self, rows: Sequence[TokenRow]) -> None:
        """See all rows that will come, to do in one go what a server does beside its steps."""

    def add(self, row: TokenRow, answer_token_ids: IntArray) -> None:
        """Put an answer into the cache: int32 [r], end token included."""

    def look_up(self, row: TokenRow) -> None:
        """Find near answers for the request that starts next; runs beside the prefill."""

    def start(self, row: TokenRow) -> None:
        """Begin a request."""

    def propose(self) -> Sequence[int]:
        """A draft of the tokens that follow."""

    def observe(self, token_ids: IntArray) -> None:
        """Take in the tokens that were emitted, int32 [n]."""

    def finish(self, row: TokenRow, *, joins: bool) -> None:
        """End the request; if `joins`, its answer joins the cache."""

    def origins_of(self, draft: Sequence[int]) -> Sequence[DraftedToken]:
        """Where the tokens of the last draft came from, as far as the method knows."""

    @property
    def near(self) -> Mapping[str, SeenAnswer]:
        """The near answers of the request, by answer id."""

    @property
    def by_source(self) -> Mapping[str, Mapping[str, int]]:
        """Drafted and accepted tokens by source, where the method knows."""

    @property
    def bytes_per_cached_token(self) -> float | None:
        """Memory of the drafting index for each token in it; None without an index."""
