"""The methods that `acceptance_rate.py` knows, and their replay on one trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from reprise.engine_ext.answer_page.records import RecordedTrace
from reprise.eval.replay.drafter import Drafter
from reprise.eval.replay.peer_drafters import (
    NGRAM_DRAFT_LENGTH,
    SUFFIX_LONG,
    SUFFIX_SWEEP,
    NgramDrafter,
    NoDrafter,
    SuffixDrafter,
    SuffixSetting,
    all_but_missing,
    suffix_installed,
)
from reprise.eval.replay.recording import ReplayRecorder
from reprise.eval.replay.replay import replay
from reprise.eval.replay.reprise_drafter import RepriseDrafter
from reprise.eval.replay.results import Run, run_of_counts
from reprise.eval.replay.semantic_cache import replay_semantic_cache
from reprise.eval.replay.token_rows import TokenRow
from reprise.retrieval.search.embedding import Embedder

METHODS = ("none", "ngram", "suffix", "suffix-long", "semantic-cache", "reprise")
"""What runs unless told otherwise, where it is installed."""
LIVE_ONLY_METHODS = ("reprise-drafts-only",)
ALL_METHODS = (*METHODS[:4], "suffix-best", *METHODS[4:], *LIVE_ONLY_METHODS)
_SUFFIX_METHODS = ("suffix", "suffix-long", "suffix-best")
_EMBEDDING_METHODS = ("semantic-cache", "reprise")


class MethodError(ValueError):
    """A method that cannot be run; the message is one line."""


@dataclass(frozen=True)
class ReplaySettings:
    """What the command line says about a replay."""

    cost: float
    threshold: float
    num_speculative_tokens: int | None

    @cached_property
    def embedder(self) -> Embedder:
        """One embedder for all methods and traces: it is slow to load."""
        return Embedder()


def parse_methods(names: str | None) -> list[str]:
    """The methods of a comma-separated list; without one, all that are installed.

    Raises MethodError for one that is unknown, or that is named but not installed.
    """
    if names is None:
        return all_but_missing(METHODS)
    methods = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not methods:
        raise MethodError("--methods names no method")
    for method in methods:
        if method not in ALL_METHODS:
            raise MethodError(f"unknown method {method!r}; known: {', '.join(ALL_METHODS)}")
        if not _suffix_ready(method):
            raise MethodError(f"method {method!r} is not installed: pip install -e '.[peers]'")
    return methods


def refuse_live_only(methods: Sequence[str]) -> None:
    """Raise MethodError if one of these needs a real engine."""
    for method in methods:
        if method in LIVE_ONLY_METHODS:
            raise MethodError(f"method {method!r} runs with --engine vllm only")


def needs_embedder(methods: Sequence[str]) -> bool:
    """Whether one of these loads an embedding model."""
    return any(method in _EMBEDDING_METHODS for method in methods)


def num_replays(method: str) -> int:
    """How often the method runs a trace."""
    return len(SUFFIX_SWEEP) if method == "suffix-best" else 1


def replay_method(
    method: str,
    trace: str,
    rows: Sequence[TokenRow],
    settings: ReplaySettings,
    *,
    on_request: Callable[[], None] = lambda: None,
    recorded: RecordedTrace | None = None,
) -> tuple[Run, SuffixSetting | None]:
    """One method on one trace, and the setting that won where there was a choice.

    The first answers are added to `recorded`, if given, but for `suffix-best`, which is many runs.
    """
    if method == "semantic-cache":
        counts = replay_semantic_cache(
            rows,
            embedder=settings.embedder,
            threshold=settings.threshold,
            on_request=on_request,
        )
        run = run_of_counts(trace, method, counts, cost=settings.cost)
        run.hit_rate, run.changed_answers = counts.hit_rate, counts.changed_answers
        if recorded is not None:
            recorded.cached = counts.replies
        return run, None
    if method == "suffix-best":
        sweep = suffix_sweep(trace, rows, settings, on_request=on_request)
        return max(sweep, key=lambda pair: pair[0].model_speedup or 0.0)
    return replay_drafter(
        method, trace, rows, settings, on_request=on_request, recorded=recorded
    ), None


def suffix_sweep(
    trace: str,
    rows: Sequence[TokenRow],
    settings: ReplaySettings,
    *,
    on_request: Callable[[], None] = lambda: None,
) -> list[tuple[Run, SuffixSetting]]:
    """SuffixDecoding under each of the sweep's settings."""
    runs = []
    for setting in SUFFIX_SWEEP:
        drafter = SuffixDrafter(setting, draft_length=settings.num_speculative_tokens)
        run = _replay_with(drafter, "suffix-best", trace, rows, settings, on_request=on_request)
        runs.append((run, setting))
    return runs


def replay_drafter(
    method: str,
    trace: str,
    rows: Sequence[TokenRow],
    settings: ReplaySettings,
    *,
    on_request: Callable[[], None] = lambda: None,
    recorded: RecordedTrace | None = None,
) -> Run:
    """A method that drafts, once."""
    draft_length = settings.num_speculative_tokens
    if method == "reprise":
        reprise = RepriseDrafter(
            embedder=settings.embedder, cost=settings.cost, draft_length=draft_length
        )
        try:
            return _replay_with(
                reprise, method, trace, rows, settings, on_request=on_request, recorded=recorded
            )
        finally:
            reprise.close()
    drafters: dict[str, Callable[[], Drafter]] = {
        "none": NoDrafter,
        "ngram": lambda: NgramDrafter(draft_length=draft_length or NGRAM_DRAFT_LENGTH),
        "suffix": lambda: SuffixDrafter(SuffixSetting(), draft_length=draft_length),
        "suffix-long": lambda: SuffixDrafter(SUFFIX_LONG, draft_length=draft_length),
    }
    drafter = drafters[method]()
    return _replay_with(
        drafter, method, trace, rows, settings, on_request=on_request, recorded=recorded
    )


def _replay_with(
    drafter: Drafter,
    method: str,
    trace: str,
    rows: Sequence[TokenRow],
    settings: ReplaySettings,
    *,
    on_request: Callable[[], None],
    recorded: RecordedTrace | None = None,
) -> Run:
    recorder = ReplayRecorder(drafter) if recorded is not None else None
    counts = replay(
        drafter,
        rows,
        num_speculative_tokens=settings.num_speculative_tokens,
        on_request=on_request,
        recorder=recorder,
    )
    if recorded is not None and recorder is not None:
        recorded.answers[method] = recorder.answers
    by_source = dict(drafter.by_source)
    if method == "ngram":
        by_source = {
            "context": {"drafted": counts.drafted_tokens, "accepted": counts.accepted_tokens}
        }
    return run_of_counts(
        trace,
        method,
        counts,
        cost=settings.cost,
        by_source=by_source,
        bytes_per_cached_token=drafter.bytes_per_cached_token,
    )


def _suffix_ready(method: str) -> bool:
    return method not in _SUFFIX_METHODS or suffix_installed()
