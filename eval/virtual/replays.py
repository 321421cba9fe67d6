"""One engine serving one workload in virtual time, from a fresh or a kept cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from reprise.eval.replay.token_rows import TokenRow
from reprise.eval.virtual.closed_loop import ClosedLoop
from reprise.eval.virtual.engines import V1, V2, Device, DeviceDrafter, HostGap, PricedClock
from reprise.eval.virtual.near_sources import NearSource, NoNear, OverlapNear, RetrievedNear
from reprise.eval.virtual.suffix_batch import SuffixBatch
from reprise.retrieval.search.embedding import Embedder
from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.lengths.batch_length import LENGTHS, BatchDraftLength

ENGINES = ("none", "suffix", "v1", "v1-ahead", "v2", "v2-adaptive")


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What there is beside the device's steps."""

    device: Device
    gap: HostGap
    suffix_gap: HostGap
    """With SuffixDecoding in place of our drafter."""
    retrieval_s: float
    drafter: DeviceDrafter
    draft_length: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a workload came to."""

    engine: str
    requests: int
    tokens: int
    seconds: float
    request_steps: int
    drafted: int
    accepted: int
    steps: int
    drafted_steps: int
    busy_tokens_per_s: float | None
    """As long as all clients had a request; None where there were no more requests than clients."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def mean_acceptance_length(self) -> float:
        return 1.0 + self.accepted / max(1, self.request_steps)

    @property
    def drafted_per_step(self) -> float:
        return self.drafted / max(1, self.request_steps)


class VirtualEngine:
    """An engine with its cache, which serves workloads one after the other."""

    def __init__(
        self,
        name: str,
        prices: Prices,
        *,
        near: NearSource,
    ) -> None:
        self.name = name
        self._clock = PricedClock()
        on_device = name.startswith("v2")
        config = DraftConfig(
            num_speculative_tokens=prices.draft_length,
            # On the device all positions are drafted; how long drafts are is decided elsewhere.
            verify_cost=0.0 if on_device else None,
        )
        self._loop = ClosedLoop(
            SuffixBatch() if name == "suffix" else DraftProvider(config, clock=self._clock),
            near,
            draft_length=prices.draft_length,
            retrieval_s=prices.retrieval_s,
        )
        self._prices = prices
        longest = prices.draft_length
        lengths = sorted({*(length for length in LENGTHS if length < longest), longest})
        self._lengths = BatchDraftLength(lengths)

    def learn(self, rows: Sequence[TokenRow]) -> None:
        """Let answers join the cache."""
        for row in rows:
            self._loop.learn(row)

    def serve(self, rows: Sequence[TokenRow], *, concurrency: int) -> Outcome:
        """Serve these rows.

        Raises:
            RuntimeError: other tokens came than are recorded.
        """
        loop, prices = self._loop, self._prices
        loop.begin(rows, concurrency=concurrency)
        gap = prices.suffix_gap if self.name == "suffix" else prices.gap
        v1 = V1(loop, self._clock, prices.device, gap)
        v2 = V2(loop, prices.device, prices.drafter)
        if self.name == "none":
            v2.serve_without_drafts()
        elif self.name in ("v1", "suffix"):
            v1.serve_synchronously()
        elif self.name == "v1-ahead":
            v1.serve_running_ahead()
        else:
            v2.serve(self._lengths, is_adaptive=self.name == "v2-adaptive")
        expected = sum(len(row.response_token_ids) for row in rows)
        if loop.tokens != expected:
            raise RuntimeError(f"{self.name}: {loop.tokens} tokens came, {expected} are recorded")
        return Outcome(
            engine=self.name,
            requests=len(rows),
            tokens=loop.tokens,
            seconds=loop.spent_s,
            request_steps=loop.request_steps,
            drafted=loop.drafted,
            accepted=loop.accepted,
            steps=loop.steps,
            drafted_steps=loop.drafted_steps,
            busy_tokens_per_s=loop.busy_tokens / loop.busy_s if loop.busy_s else None,
        )


@contextmanager
def virtual_engine(
    name: str, prices: Prices, *, embedder: Embedder | None
) -> Iterator[VirtualEngine]:
    """An engine with an empty cache. Without an embedder, near answers are found by shared
    tokens."""
    if name in ("none", "suffix"):
        yield VirtualEngine(name, prices, near=NoNear())
    elif embedder is None:
        yield VirtualEngine(name, prices, near=OverlapNear())
    else:
        near = RetrievedNear(embedder)
        try:
            yield VirtualEngine(name, prices, near=near)
        finally:
            near.close()
