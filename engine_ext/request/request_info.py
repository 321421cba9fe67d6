"""Collects what a client asks to know of its request: what the cache had for it, drafts by source,
and times.

The counts are the worker's, in another process. It stores those of a finished request that asked;
the engine client fetches them when the last output is there, and delivers that output with them.
"""

import json
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from reprise.spec.api.recorded_steps import RecordedRequest

if TYPE_CHECKING:
    from reprise.retrieval.api.found_clause import FoundClause
    from reprise.spec.api.stats import RequestStats

_MAX_STORED = 1024
_MAX_RECORDED = 64
"""Of them, whose steps are stored as well."""
# Whoever fetches does so within seconds.
_STORED_FOR_S = 60.0
# Proxies allow a header some 4 kB, and a Chinese sign takes 6 bytes of it.
_MAX_CLAUSES, _CLAUSE_CHARACTERS = 8, 60
CACHE_KINDS = ("exact", "verified", "semantic", "clause", "miss")
"""How the cache took a request, in the order of the reply's header."""


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


class RecordedCounts(DraftCounts, frozen=True):
    """Those of a request whose steps may have been recorded. No reply has them."""

    record: RecordedRequest | None = None


class ClauseInfo(msgspec.Struct, frozen=True):
    """A part of the question that was searched for by itself, and what joins it to the one
    before."""

    text: str
    connective: str


FetchCounts = Callable[[Sequence[str]], Awaitable[dict[str, DraftCounts]]]
"""From ids of counts to those that the workers have reported."""


def counts_id(nonce: str, request_id: str) -> str:
    """Return what a request's counts are kept under: its own id may come again.

    Args:
        nonce: of the `InfoCollector` that will fetch them.
        request_id: the engine's.
    """
    return f"{nonce}-{request_id}"


class RequestInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request, whatever number of generations it is."""

    cache: tuple[str, ...]
    """exact, verified, semantic, clause, miss: those that occurred."""
    drafts: DraftCounts | None
    """None: the workers did not report in time."""
    retrieval_ms: float | None
    """From arrival until near answers, or the word that there are none, were there; the longest.
    None where they were not searched for from here, or where that had not ended."""
    clauses: tuple[ClauseInfo, ...] = ()
    """Of the question; left out where it asks one thing."""
    similarity: float | None = None
    """Of the nearest answer that was there at the first token, of the whole question or of a part;
    left out where there was none, as of an exact hit."""
    took_ms: float = 0.0
    """From where the engine client takes the request until its last output is there; of several,
    the longest."""

    @property
    def is_cached(self) -> bool:
        """Whether nothing was generated: all of it came from the cache or from another request."""
        return self.cache == ("exact",)

    def as_json(self) -> str:
        """Return the value of the reply's header, in ASCII."""
        return json.dumps(msgspec.to_builtins(self), separators=(",", ":"))


class InfoSource(Protocol):
    """What is known here of one request to the engine."""

    kind: str
    similarity: float | None

    def retrieval_ms(self) -> float | None:
        """Return the time of retrieval in milliseconds; see `RequestInfo`."""

    def clauses(self) -> "Sequence[FoundClause]":
        """Return the clauses that the question was found to have."""


class InfoCollector:
    """Collects the information on one request."""

    def __init__(self) -> None:
        self.nonce = secrets.token_hex(8)
        """No other request's counts are kept under what begins with this."""
        self._began_s = time.monotonic()
        self._generations: list[InfoSource] = []
        self._ids: dict[str, None] = {}  # of streamed input, each piece has the same one
        self.has_collected = False
        """Whether `collect` has asked the workers, who know no more then."""
        self.namespace: str | None = None
        """In which the request shares; None: in none, or not known yet."""
        self.records: list[RecordedRequest] = []
        """The recorded steps of its generations, as far as `collect` has found any."""

    def add(self, generation: InfoSource) -> None:
        """Add a request to the engine that the cache was asked about."""
        self._generations.append(generation)

    def generates(self, request_id: str) -> None:
        """Note that the engine generates under this id."""
        self._ids[request_id] = None

    def generates_nothing(self, request_id: str) -> None:
        """Note that the engine will not generate under this id after all."""
        self._ids.pop(request_id, None)

    @property
    def counts_ids(self) -> Sequence[str]:
        """Under which the workers keep the counts of what the engine generates, or has."""
        return [counts_id(self.nonce, request_id) for request_id in self._ids]

    async def collect(self, fetch: FetchCounts) -> RequestInfo:
        """Return the information on a request that is over, as soon as `fetch` has returned."""
        took_ms = (time.monotonic() - self._began_s) * 1e3
        found = await fetch(self.counts_ids)
        self.has_collected = True
        self.records = [
            each.record
            for each in found.values()
            if isinstance(each, RecordedCounts) and each.record is not None
        ]
        counts = list(found.values()) if len(found) == len(self._ids) else None
        retrieval_ms = _largest(generation.retrieval_ms() for generation in self._generations)
        return merged(
            [
                RequestInfo(
                    cache=tuple(each.kind for each in self._generations) or ("miss",),
                    drafts=_sum(counts) if counts is not None else None,
                    retrieval_ms=None if retrieval_ms is None else round(retrieval_ms, 3),
                    clauses=tuple(
                        ClauseInfo(_shortened(clause.text), clause.connective)
                        for generation in self._generations
                        for clause in generation.clauses()
                    ),
                    similarity=_largest(each.similarity for each in self._generations),
                    took_ms=round(took_ms, 3),
                )
            ]
        )


class _Stored(NamedTuple):
    put_s: float
    counts: DraftCounts


class DraftCountsStore:
    """Stores counts of finished requests in the worker, each under its `counts_id` until it is
    fetched. Thread-safe.

    Those of a client that has left are fetched as well (`DraftCountsFetcher.drop`). What is not, of
    an API server that died say, is dropped by the next call a minute later, or to make room.
    """

    def __init__(self) -> None:
        self._stored: OrderedDict[str, _Stored] = OrderedDict()  # the oldest first
        self._recorded: deque[str] = deque()  # those with steps, the oldest first
        self._lock = threading.Lock()

    def put(
        self,
        id_: str,
        stats: "RequestStats | None",
        record: RecordedRequest | None = None,
    ) -> None:
        """Store the counts of a request that asked and is over; without `stats`, nothing was
        drafted."""
        counts = DraftCounts()
        if stats is not None:
            by_source = {
                source: SourceCounts(count.drafted, count.accepted)
                for source, count in stats.by_source.items()
            }
            counts = DraftCounts(stats.steps, by_source)
        with self._lock:
            if record is not None:
                counts = RecordedCounts(counts.steps, counts.by_source, record)
                self._drop_records(_MAX_RECORDED - 1)
                self._recorded.append(id_)
            self._stored.pop(id_, None)
            self._stored[id_] = _Stored(time.monotonic(), counts)
            self._expire()

    def _expire(self) -> None:
        """Drop what nobody will fetch, and what there are too many of."""
        oldest_s = time.monotonic() - _STORED_FOR_S
        while self._stored:
            oldest = next(iter(self._stored.values()))
            if len(self._stored) <= _MAX_STORED and oldest.put_s >= oldest_s:
                return
            self._stored.popitem(last=False)

    def _drop_records(self, num_kept: int) -> None:
        """Leave the counts of the oldest recorded requests, and drop their steps."""
        while len(self._recorded) > num_kept:
            id_ = self._recorded.popleft()
            if (stored := self._stored.get(id_)) is not None:
                counts = DraftCounts(stored.counts.steps, stored.counts.by_source)
                self._stored[id_] = stored._replace(counts=counts)

    def take(self, counts_ids: Sequence[str]) -> dict[str, Any]:
        """Remove and return the counts under these ids, of those requests that are over."""
        with self._lock:
            found = {id_: self._stored.pop(id_).counts for id_ in counts_ids if id_ in self._stored}
            self._expire()
        plain: dict[str, Any] = msgspec.to_builtins(found)
        return plain


def no_draft_counts(counts_ids: Sequence[str]) -> dict[str, Any]:
    """Return what a worker says of requests where the settings have drafts off."""
    plain: dict[str, Any] = msgspec.to_builtins(dict.fromkeys(counts_ids, DraftCounts()))
    return plain


def merged(infos: Sequence[RequestInfo]) -> RequestInfo:
    """Combine the information on requests to the engine client that are one HTTP request.

    Args:
        infos: one or more.
    """
    kinds = {kind for info in infos for kind in info.cache}
    counts = [info.drafts for info in infos if info.drafts is not None]
    return RequestInfo(
        cache=tuple(kind for kind in CACHE_KINDS if kind in kinds),
        drafts=_sum(counts) if len(counts) == len(infos) else None,
        retrieval_ms=_largest(info.retrieval_ms for info in infos),
        # Choices of one prompt have the same.
        clauses=tuple(dict.fromkeys(clause for info in infos for clause in info.clauses))[
            :_MAX_CLAUSES
        ],
        similarity=_largest(info.similarity for info in infos),
        took_ms=max(info.took_ms for info in infos),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _shortened(text: str) -> str:
    """Return a clause of a length that a header has room for."""
    return text if len(text) <= _CLAUSE_CHARACTERS else text[: _CLAUSE_CHARACTERS - 1] + "…"


def _sum(counts: Sequence[DraftCounts]) -> DraftCounts:
    by_source: dict[str, SourceCounts] = {}
    for count in counts:
        for source, more in count.by_source.items():
            so_far = by_source.get(source, SourceCounts(0, 0))
            by_source[source] = SourceCounts(
                so_far.drafted + more.drafted, so_far.accepted + more.accepted
            )
    return DraftCounts(sum(count.steps for count in counts), by_source)
