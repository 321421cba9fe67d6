"""Counters of drafting, per request and in all."""

from dataclasses import dataclass, field

SOURCES = ("context", "near_answer", "corpus")
"""Where a draft token came from; the index is the code used in compiled code."""


@dataclass
class SourceStats:
    """Tokens drafted from one source, and how many of them were accepted."""

    drafted: int = 0
    accepted: int = 0


def _by_source() -> dict[str, SourceStats]:
    return {source: SourceStats() for source in SOURCES}


@dataclass
class RequestStats:
    """What drafting did for one request. The first token comes from prefill and is no step."""

    steps: int = 0
    emitted: int = 0
    drafted: int = 0
    accepted: int = 0
    by_source: dict[str, SourceStats] = field(default_factory=_by_source)
    accepted_by_answer: dict[str, int] = field(default_factory=dict)

    def add(self, other: "RequestStats") -> None:
        """Add another request's counters, all but those by answer."""
        self.steps += other.steps
        self.emitted += other.emitted
        self.drafted += other.drafted
        self.accepted += other.accepted
        for source, count in other.by_source.items():
            self.by_source[source].drafted += count.drafted
            self.by_source[source].accepted += count.accepted


@dataclass
class ProviderStats:
    """What drafting did since the provider was made; `bytes` and `cached_tokens` are as of now."""

    requests: int = 0
    steps: int = 0
    emitted: int = 0
    drafted: int = 0
    accepted: int = 0
    by_source: dict[str, SourceStats] = field(default_factory=_by_source)
    answers: int = 0
    cached_tokens: int = 0
    bytes: int = 0
    errors: int = 0
