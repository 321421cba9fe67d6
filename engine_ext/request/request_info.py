"""What a client is told of one request, if it asks: drafts by source, and the time of retrieval.

The counts are the worker's, in another process. It keeps those of a finished request that asked;
the engine client fetches them when the last output is there, and hands that output on with them.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from reprise.spec.api.stats import RequestStats

_MAX_STORED = 1024
CACHE_KINDS = ("exact", "semantic", "clause", "miss")
"""How the cache took a request, in the order in which that is told."""


class SourceCounts(msgspec.Struct, frozen=True):
    """Tokens drafted from one source, and how many of them the model accepted."""

    drafted: int
    accepted: int


class DraftCounts(msgspec.Struct, frozen=True):
    """What drafting did for one request, as it comes from a worker."""

    steps: int = 0
    """Verification steps; the first token comes from the prefill and counts as none."""
    by_source: dict[str, SourceCounts] = msgspec.field(default_factory=dict)
    """context, near_answer and corpus."""


FetchCounts = Callable[[Sequence[str]], Awaitable[dict[str, DraftCounts]]]
"""From request ids to the counts of those that the workers have told of."""


class RequestInfo(msgspec.Struct, frozen=True):
    """One request, whatever number of generations it is."""

    cache: tuple[str, ...]
    """exact, semantic, clause, miss: those that occurred."""
    drafts: DraftCounts | None
    """None: the workers did not tell in time."""
    retrieval_ms: float | None
    """From arrival until near answers, or the word that there are none, were there; the longest.
    None where they were not searched for from here, or where that had not ended."""

    def as_json(self) -> str:
        """The value of the reply's header."""
        return msgspec.json.encode(self).decode()


class InfoSource(Protocol):
    """What is known here of one generation."""

    kind: str

    def retrieval_ms(self) -> float | None:
        """See `RequestInfo`."""


class InfoCollector:
    """Gathers what there is to tell of one request."""

    def __init__(self) -> None:
        self._generations: list[InfoSource] = []
        self._ids: list[str] = []

    def add(self, generation: InfoSource) -> None:
        """A generation that the cache was asked about."""
        self._generations.append(generation)

    def generates(self, request_id: str) -> None:
        """The engine generates under this id."""
        self._ids.append(request_id)

    async def collect(self, fetch: FetchCounts) -> RequestInfo:
        """All there is to tell, once the request is over, as soon as `fetch` has come back."""
        found = await fetch(self._ids)
        counts = list(found.values()) if len(found) == len(self._ids) else None
        times_ms = [generation.retrieval_ms() for generation in self._generations]
        return merged(
            [
                RequestInfo(
                    cache=tuple(each.kind for each in self._generations) or ("miss",),
                    drafts=_sum(counts) if counts is not None else None,
                    retrieval_ms=max((ms for ms in times_ms if ms is not None), default=None),
                )
            ]
        )


class DraftCountsStore:
    """The worker's side: counts of finished requests, each until it is asked for.

    The oldest give way: a client that left never asks.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[str, DraftCounts] = OrderedDict()

    def put(self, request_id: str, stats: "RequestStats | None") -> None:
        """Store the counts of a request that asked and is over; None: nothing was drafted."""
        counts = DraftCounts()
        if stats is not None:
            by_source = {
                source: SourceCounts(count.drafted, count.accepted)
                for source, count in stats.by_source.items()
            }
            counts = DraftCounts(stats.steps, by_source)
        self._counts[request_id] = counts
        while len(self._counts) > _MAX_STORED:
            self._counts.popitem(last=False)

    def take(self, request_ids: Sequence[str]) -> dict[str, Any]:
        """The counts of those of these requests that are over, as plain values; once."""
        found = {id_: self._counts.pop(id_) for id_ in request_ids if id_ in self._counts}
        plain: dict[str, Any] = msgspec.to_builtins(found)
        return plain


def merged(infos: Sequence[RequestInfo]) -> RequestInfo:
    """One HTTP request that is several to the engine client.

    Args:
        infos: at least one.
    """
    kinds = {kind for info in infos for kind in info.cache}
    counts = [info.drafts for info in infos if info.drafts is not None]
    times_ms = [info.retrieval_ms for info in infos if info.retrieval_ms is not None]
    return RequestInfo(
        cache=tuple(kind for kind in CACHE_KINDS if kind in kinds),
        drafts=_sum(counts) if len(counts) == len(infos) else None,
        retrieval_ms=max(times_ms, default=None),
    )


def _sum(counts: Sequence[DraftCounts]) -> DraftCounts:
    by_source: dict[str, SourceCounts] = {}
    for count in counts:
        for source, more in count.by_source.items():
            so_far = by_source.get(source, SourceCounts(0, 0))
            by_source[source] = SourceCounts(
                so_far.drafted + more.drafted, so_far.accepted + more.accepted
            )
    return DraftCounts(sum(count.steps for count in counts), by_source)
