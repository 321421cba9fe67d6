"""One engine serving one workload in virtual time, from a fresh or a kept cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from reprise.engine_ext.scheduling.graph_lengths import GraphLengths
from reprise.eval.replay.token_rows import TokenRow
from reprise.eval.virtual.captured import CAPTURED
from reprise.eval.virtual.closed_loop import ClosedLoop
from reprise.eval.virtual.copy_batch import CopyBatch
from reprise.eval.virtual.engines import (
    V1,
    V2,
    Device,
    DeviceDrafter,
    FixedLength,
    HostGap,
    LengthRule,
    PricedClock,
)
from reprise.eval.virtual.near_sources import NearSource, NoNear, OverlapNear, RetrievedNear
from reprise.eval.virtual.suffix_batch import SuffixBatch
from reprise.retrieval.search.embedding import Embedder
from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.lengths.batch_length import LENGTHS, BatchDraftLength

_MAX_NUM_SEQS = 128

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
    captured: Sequence[int] | None = None
    """Lengths of drafts of which there are graphs; None: those of now."""


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
        self._loop = ClosedLoop(
            self._provider(name, prices),
            near,
            draft_length=prices.draft_length,
            retrieval_s=prices.retrieval_s,
        )
        self._prices = prices
        lengths = [length for length in LENGTHS if length <= prices.draft_length]
        self._lengths = BatchDraftLength(lengths)
        self._graphs = GraphLengths(
            CAPTURED, (0, *(prices.captured or lengths)), max_num_seqs=_MAX_NUM_SEQS
        )

    def _provider(self, name: str, prices: Prices) -> DraftProvider | SuffixBatch | CopyBatch:
        if name == "suffix":
            return SuffixBatch()
        if name.startswith("v2"):
            return CopyBatch(prices.draft_length)
        config = DraftConfig(num_speculative_tokens=prices.draft_length)
        return DraftProvider(config, clock=self._clock)

    def learn(self, rows: Sequence[TokenRow]) -> None:
        """Let answers join the cache."""
        for row in rows:
            self._loop.learn(row)

    def serve(
        self, rows: Sequence[TokenRow], *, concurrency: int, length: int | None = None
    ) -> Outcome:
        """Serve these rows; on V2 with drafts of `length` tokens always, if it is given.

        Raises:
            RuntimeError: other tokens came than are recorded.
        """
        loop, prices = self._loop, self._prices
        loop.begin(rows, concurrency=concurrency)
        gap = prices.suffix_gap if self.name == "suffix" else prices.gap
        v1 = V1(loop, self._clock, prices.device, gap)
        v2 = V2(loop, prices.device, prices.drafter, self._graphs)
        if self.name == "none":
            v2.serve_without_drafts()
        elif self.name in ("v1", "suffix"):
            v1.serve_synchronously()
        elif self.name == "v1-ahead":
            v1.serve_running_ahead()
        else:
            rule: LengthRule = self._lengths if length is None else FixedLength(length)
            v2.serve(rule, is_adaptive=self.name == "v2-adaptive")
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
