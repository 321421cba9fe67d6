"""Exports Prometheus metrics beside vLLM's own, correct with several API server processes.

What happens in this process is counted as it happens, in every process. What happens in the
workers comes from their reports, which exactly one process (the first) turns into counts: with
`prometheus_client`'s multi-process mode the sums over all files are then right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from reprise.engine_ext.frontend.exact_memory import ExactMemoryStats
from reprise.engine_ext.request.exact_hits import SAMPLED
from reprise.retrieval.api.retriever import RetrievalStats
from reprise.spec.api.stats import SOURCES

_BREAKER_STATES = {"closed": 0, "half-open": 1, "open": 2}
_FOUND_BY = ("meaning", "tokens")
_OUTCOMES = ("whole", "part", "none")
_LOOK_UPS = ("hit", "unproven", "waited", "miss", "late", "busy", "failed", "refused", "unreadable")
_ERROR_PLACES = {
    "front_end": (
        *("end_lease", "exact_fetch", "exact_hit", "fingerprint", "flight_watcher", "forget"),
        *("forget_by_prompt", "forget_pins", "front_end_records", "info", "not_admitted"),
        *("one_token_outputs", "policy", "record", "replay", "reply_header", "report"),
        *("single_flight", "verified_replay", "verify", "watch", "weight_version", "withdraw"),
    ),
    "worker": (
        *("AsyncScheduler.__init__", "Scheduler.__init__", "before_propose", "before_serving"),
        *("begin request", "corpora", "drop request", "end request", "learn"),
        *("learn: queue full", "near answers", "observe end", "on_arrival"),
        *("preempt request", "propose", "read back", "read back: queue full", "record"),
        *("save hits", "save weights", "start request", "store drafts", "system_prefix"),
    ),
}
_LOOKUP_BUCKETS_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3)


@cache
def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"reprise:{name}", text, ("model_name", *labels))


@cache
def _gauge(name: str, text: str, *labels: str, mode: str = "livesum") -> Gauge:
    return Gauge(
        f"reprise:{name}",
        text,
        ("model_name", *labels),
        multiprocess_mode=mode,  # type: ignore[arg-type]
    )


@cache
def _lookup_histogram() -> Histogram:
    return Histogram(
        "reprise:exact_lookup_seconds",
        "Time to decide whether a request is an exact hit.",
        ("model_name",),
        buckets=_LOOKUP_BUCKETS_S,
    )


class _Increments:
    """Turns totals that are counted elsewhere into increments."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], float] = {}

    def of(self, key: tuple[str, ...], total: float) -> float:
        """Return what was added since the last call; after a restart of the source, all of it."""
        before = self._seen.get(key, 0.0)
        self._seen[key] = total
        return total - before if total >= before else total


class ServingMetrics:
    """Sets the metrics of one model in one API server process.

    What is known to be counted is there from the start, at 0: only then does a rate see the first.

    Args:
        model_name: The label of all of them.
        tier: Behind the memory of this front end's retrieval process, sqlite or redis; None: it
            has no such process, or this is not known.
    """

    def __init__(self, model_name: str, *, tier: str | None = None) -> None:
        self._model = model_name
        self._increments = _Increments()
        for kind in ("exact", "followed", "miss"):
            self._requests(kind)
        for kind in ("semantic", "clause", "miss"):
            self._near_answers(kind)
        self._passed_through(SAMPLED)
        self._lookups()
        self.saved(0)
        for outcome in _OUTCOMES:
            self._verified_replays(outcome)
        self._tokens_verified()
        self._stored()
        self.active(0)
        self.memory(ExactMemoryStats(answers=0, bytes=0, evicted=0, expired=0))
        self.shared({})
        for where, places in _ERROR_PLACES.items():
            self.errors(where, dict.fromkeys(places, 0))
        provider: dict[str, Any] = {"by_source": {source: {} for source in SOURCES}}
        in_time = dict.fromkeys(_FOUND_BY, 0)
        self._worker("0", {"provider": provider, "near_answers_in_time": in_time})
        if tier is not None:
            closed = {"read": "closed", "write": "closed"}
            self.retrieval({**asdict(RetrievalStats()), "tier": tier, "breakers": closed})

    def active(self, num_requests: int) -> None:
        """Set how many requests have come and are not over."""
        text = "Requests that have come and are not over, those in vLLM's queue included."
        self._gauge("active_requests", text).set(num_requests)

    def request(self, kind: str, lookup_s: float) -> None:
        """Count a request: `exact`, `followed` or `miss`."""
        self._requests(kind).inc()
        self._lookups().observe(lookup_s)

    def _requests(self, kind: str) -> Counter:
        text = "Requests by how the cache took them: exact, followed or miss."
        return self._counter("requests", text, kind=kind)

    def _lookups(self) -> Histogram:
        return _lookup_histogram().labels(self._model)

    def refused(self, reason: str) -> None:
        """Count a request that must be generated whatever the cache holds."""
        self._passed_through(reason).inc()

    def _passed_through(self, reason: str) -> Counter:
        text = "Requests that had to be generated, by reason."
        return self._counter("passed_through", text, reason=reason)

    def saved(self, num_tokens: int) -> None:
        """Count tokens that were emitted without an engine step."""
        text = "Output tokens emitted without generating them."
        self._counter("tokens_saved", text).inc(num_tokens)

    def verified(self, outcome: str, num_tokens: int) -> None:
        """Count a stored answer that the engine has checked: `whole`, `part` or `none` of it is
        what it would generate, `num_tokens` tokens."""
        self._verified_replays(outcome).inc()
        self._tokens_verified().inc(num_tokens)

    def _verified_replays(self, outcome: str) -> Counter:
        text = "Stored answers checked by the engine, by how far it agreed: whole, part or none."
        return self._counter("verified_replays", text, outcome=outcome)

    def _tokens_verified(self) -> Counter:
        text = "Tokens of stored answers that the engine verified and emitted."
        return self._counter("tokens_verified", text)

    def stored(self) -> None:
        """Count an answer stored in the exact memory."""
        self._stored().inc()

    def _stored(self) -> Counter:
        text = "Answers stored for exact hits."
        return self._counter("answers_stored", text)

    def memory(self, stats: ExactMemoryStats) -> None:
        """Set what this process's exact memory holds."""
        text = "Bytes of answers held for exact hits."
        self._gauge("exact_memory_bytes", text).set(stats.bytes)
        self._gauge("exact_memory_answers", "Answers held for exact hits.").set(stats.answers)
        text = "Answers evicted for lack of room or by age."
        for why, total in (("room", stats.evicted), ("age", stats.expired)):
            self._add("exact_evictions", text, total, why=why)

    def shared(self, stats: Mapping[str, Any]) -> None:
        """Count look-ups of exact hits in the tier by outcome, and answers written there."""
        text = "Look-ups of exact hits in the tier."
        for outcome in _LOOK_UPS:
            self._add("exact_tier_lookups", text, stats.get(outcome, 0), outcome=outcome)
        text = "Answers handed over to be written to the tier for exact hits."
        self._add("exact_tier_written", text, stats.get("written", 0))

    def errors(self, where: str, counts: Mapping[str, int], *, rank: str = "") -> None:
        """Count errors that were caught, by place; `where` is `front_end`, or `worker` with its
        rank."""
        for place, total in counts.items():
            text = "Errors caught, by process and place."
            self._add("errors", text, total, of=rank, where=where, place=place)

    def features(self, where: str, states: Mapping[str, str]) -> None:
        """Set what of Reprise is applied to vLLM in a process, see `Registry.states`."""
        text = "Whether a feature is applied to vLLM: 1, or 0 where this vLLM is not as it expects."
        for feature, state in states.items():
            gauge = self._gauge(
                "feature_applied", text, mode="mostrecent", where=where, feature=feature
            )
            gauge.set(state == "applied")

    def workers(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """Count what the workers report, by rank, see `CacheHitProposer.report`; skip empty
        reports."""
        for rank, report in enumerate(reports):
            if report:
                self._worker(str(rank), report)

    def _worker(self, rank: str, report: Mapping[str, Any]) -> None:
        provider = _mapping(report.get("provider"))
        steps = provider.get("steps", 0)
        self._add("draft_steps", "Verification steps of requests with drafts.", steps, of=rank)
        for source, figures in _mapping(provider.get("by_source")).items():
            for field, text in (
                ("drafted", "Tokens proposed, by source."),
                ("accepted", "Proposed tokens that the model accepted, by source."),
            ):
                total = _mapping(figures).get(field, 0)
                self._add(f"{field}_tokens", text, total, of=rank, source=source)
        text = "Bytes of the answers that a worker drafts from."
        self._gauge("corpus_bytes", text, rank=rank).set(provider.get("bytes", 0))
        if steps:
            text = "Tokens per verification step since the start, bonus included."
            gauge = self._gauge("mean_acceptance_length", text, mode="mostrecent")
            gauge.set(1 + provider.get("accepted", 0) / steps)
        text = "Requests that had near answers at their first decode step, by what had found them."
        for found_by, total in _mapping(report.get("near_answers_in_time")).items():
            self._add("near_answers_in_time", text, total, of=rank, found_by=found_by)
        text = (
            "Requests without near answers at their first decode step, as the search was not over."
        )
        self._add("near_answers_late", text, report.get("near_answers_late", 0), of=rank)
        propose = _mapping(report.get("propose_us"))
        self._add("propose_calls", "Calls of propose.", propose.get("count", 0), of=rank)
        seconds = propose.get("sum", 0) / 1e6
        self._add("propose_seconds", "Time spent in propose.", seconds, of=rank)
        for quantile, field in (("0.5", "p50"), ("0.99", "p99")):
            gauge = self._gauge(
                "propose_latency_seconds",
                "Latency of propose.",
                mode="mostrecent",
                quantile=quantile,
            )
            gauge.set(propose.get(field, 0) / 1e6)
        self.errors("worker", _mapping(report.get("errors")), rank=rank)
        self.features("worker", _mapping(report.get("compat")))

    def pins(self, reports: Sequence[Mapping[str, Any] | None]) -> None:
        """Count and set what the engine cores report on pinned prefixes, see `EnginePins.stats`."""
        given = [report for report in reports if report]
        if not given:
            return
        for rank, report in enumerate(given):
            for field, text in (
                ("hits", "Requests that found a pinned prefix in the prefix cache."),
                ("hit_tokens", "Prompt tokens of pinned prefixes that were found there."),
                ("saved_tokens", "Those of them that would have been evicted, but for the pin."),
                ("released_blocks", "Pinned blocks let go of, because nothing else was free."),
            ):
                self._add(f"kv_pin_{field}", text, report[field], of=str(rank))
        for field, text in (
            ("pins", "Prefixes that are pinned."),
            ("pinned_blocks", "KV blocks in the prefix cache that are pinned."),
        ):
            gauge = self._gauge(f"kv_{field}", text, mode="mostrecent")
            gauge.set(sum(report[field] for report in given))

    def near_answers(self, kind: str) -> None:
        """Count what a request had at its first token: `semantic`, `clause` or `miss`."""
        self._near_answers(kind).inc()

    def _near_answers(self, kind: str) -> Counter:
        text = "Generated requests by the near answers that were there at their first token."
        return self._counter("near_answers", text, kind=kind)

    def retrieval(self, stats: Mapping[str, Any]) -> None:
        """Count and set the figures of the retrieval process that this front end has started."""
        for field, text in (
            ("submitted", "Searches for near answers begun."),
            ("abandoned", "Searches that were not begun: their request was over."),
            ("found", "Searches that found a near answer."),
            ("stored", "Answers stored in retrieval."),
            ("evicted", "Answers evicted from retrieval."),
            ("evicted_early", "Answers evicted before they were indexed and written."),
            ("duplicates", "Answers that left memory: another one says nearly the same."),
            ("resyncs", "Times that updates were not read in time and sent again."),
            ("dropped", "Prompts and answers dropped because a queue was full."),
            ("errors", "Errors of retrieval."),
            ("restarts", "Times that the retrieval process was started again."),
            ("hangs", "Times that the retrieval process was killed: it did not answer."),
            ("compound", "Questions that were found to have clauses."),
            ("remote_searches", "Look-ups beyond memory."),
            ("remote_found", "Look-ups beyond memory that found what memory did not hold."),
            ("remote_late", "Look-ups beyond memory that took longer than their budget."),
            ("remote_failed", "Look-ups beyond memory that came to nothing."),
            ("remote_unwritten", "Changes that the remote index never got."),
            ("remote_orphans", "Answers found beyond memory that the tier did not hold."),
            ("clause_s", "Seconds spent finding clauses, beside embedding."),
            ("embed_s", "Seconds spent embedding."),
            ("search_s", "Seconds spent searching."),
        ):
            if field in stats:
                name = f"retrieval_{field.removesuffix('_s')}" + "_seconds" * field.endswith("_s")
                self._add(name, text, stats[field])
        for field, text in (
            ("answers", "Answers held."),
            ("namespaces", "Namespaces that hold answers."),
            ("bytes", "Bytes charged for answers held, their indexes and their namespaces."),
            ("ready_after_s", "Seconds from its start until near answers could be found."),
        ):
            if stats.get(field) is not None:
                name = f"retrieval_{field.removesuffix('_s')}" + "_seconds" * field.endswith("_s")
                self._gauge(name, text, mode="mostrecent").set(stats[field])
        self._tier(stats)

    def _tier(self, stats: Mapping[str, Any]) -> None:
        """Set the state of the tier behind the retrieval process's memory, if there is one."""
        if not (tier := stats.get("tier")):
            return
        text = "Circuit breakers of the tier behind memory: 0 closed, 1 half-open, 2 open."
        for operation, state in _mapping(stats.get("breakers")).items():
            gauge = self._gauge(
                "tier_breaker_state", text, mode="mostrecent", tier=tier, operation=operation
            )
            gauge.set(_BREAKER_STATES[state])
        for field, text in (
            ("unwritten", "Answers that the tier never got: its write queue was full."),
            ("uncredited", "Answers whose uses the tier never got."),
            ("unreadable", "Records of the tier that were damaged or a newer version's."),
        ):
            if field in stats:
                self._add(f"tier_{field}", text, stats[field], tier=tier)

    def _counter(self, name: str, text: str, /, **labels: str) -> Counter:
        return _counter(name, text, *labels).labels(self._model, *labels.values())

    def _gauge(self, name: str, text: str, /, *, mode: str = "livesum", **labels: str) -> Gauge:
        return _gauge(name, text, *labels, mode=mode).labels(self._model, *labels.values())

    def _add(self, name: str, text: str, total: float, /, *, of: str = "", **labels: str) -> None:
        """Bring a counter to what is counted elsewhere; it is the sum over all `of`."""
        increment = self._increments.of((name, of, *labels.values()), total)
        self._counter(name, text, **labels).inc(increment)


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a dict as it is, or the fields of a dataclass or struct by name."""
    if isinstance(value, Mapping):
        return value
    for attribute in ("__dataclass_fields__", "__struct_fields__"):
        if (names := getattr(value, attribute, None)) is not None:
            return {name: getattr(value, name) for name in names}
    return {}
