"""The interface of a place that keeps answers, and how a URL names one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation, InvalidationPage

TextOf = Callable[[Answer], str]
_FORGET_BATCH = 256


class TierError(Exception):
    """The tier could not do it now; trying later may work."""


class TierDamagedError(TierError):
    """What the tier has its answers in is damaged; trying later does not help."""


class UsageCounts(NamedTuple):
    """What an answer was good for."""

    uses: int = 0
    accepted_tokens: int = 0

    def plus(self, other: UsageCounts) -> UsageCounts:
        """Return the sum of both."""
        return UsageCounts(self.uses + other.uses, self.accepted_tokens + other.accepted_tokens)


@dataclass(frozen=True, slots=True)
class TierChanges:
    """What other replicas did to a tier since the last look."""

    added: tuple[Answer, ...] = ()
    removed: tuple[tuple[str, str], ...] = ()
    """(namespace, answer id)"""
    complete: bool = True
    """False: more changed than the tier remembers, and only comparing all of it shows what."""


def with_usage(answer: Answer, usage: UsageCounts) -> Answer:
    """Return the answer with what it earned since its record was written, if that is more."""
    uses = max(answer.uses, usage.uses)
    accepted_tokens = max(answer.accepted_tokens, usage.accepted_tokens)
    if (uses, accepted_tokens) == (answer.uses, answer.accepted_tokens):
        return answer
    return msgspec.structs.replace(answer, uses=uses, accepted_tokens=accepted_tokens)


class Tier(ABC):
    """Answers by namespace and id. No call looks beyond its namespace.

    All methods may raise `TierError`; none waits longer than the tier's own timeouts.

    Example:
        >>> from reprise.retrieval.tiers.memory_tier import MemoryTier
        >>> tier = MemoryTier(max_bytes=1 << 20)
        >>> answer = Answer.create(prompt_token_ids=[1], response_token_ids=[2], answer_id="a")
        >>> tier.put([answer])  # nothing had to leave for it
        []
        >>> tier.record_usage("", {"a": UsageCounts(uses=1, accepted_tokens=5)})
        >>> [(each.answer_id, each.accepted_tokens) for each in tier.answers("")]
        [('a', 5)]
        >>> tier.remove("", ["a"])
        1
    """

    name: str

    @abstractmethod
    def put(self, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        """Keep answers, replacing those of the same id; the (namespace, id) that had to leave."""

    @abstractmethod
    def replace(self, answers: Sequence[Answer]) -> int:
        """Keep answers in place of those of the same id that are still there, as long as they; how
        many. Others are not told."""

    @abstractmethod
    def remove(self, namespace: str, answer_ids: Sequence[str]) -> int:
        """Forget answers; how many of them were there."""

    @abstractmethod
    def record_usage(self, namespace: str, usage: Mapping[str, UsageCounts]) -> None:
        """Add to the `uses` and `accepted_tokens` of answers by id; unknown ids are left out.

        Putting an answer anew keeps the larger of what it brings and what it had.
        """

    @abstractmethod
    def answers(self, namespace: str) -> Iterator[Answer]:
        """Return all answers of a namespace, in no particular order, read in pages; those for exact
        hits not among them."""

    def valuable(self, namespace: str) -> Iterator[Answer]:
        """Return the answers of a namespace, about the most valuable first, read in pages. One that
        is used, joins or leaves meanwhile may be left out or come twice."""
        return self.answers(namespace)

    def find(self, namespace: str, answer_ids: Sequence[str]) -> list[Answer]:
        """Return the answers of these ids, as many as there are, in one round trip; those for exact
        hits not among them."""
        wanted = set(answer_ids)
        return [answer for answer in self.answers(namespace) if answer.answer_id in wanted]

    def exact_answers(self, namespace: str) -> Iterator[Answer]:  # noqa: ARG002
        """Return all answers for exact hits of a namespace, see `answers`."""
        return iter(())

    def find_exact(
        self,
        namespace: str,  # noqa: ARG002
        exact_keys: Sequence[bytes],  # noqa: ARG002
    ) -> list[Answer]:
        """Return the answers for exact hits under these keys, as many as there are, in one round
        trip."""
        return []

    def lease(self, namespace: str, exact_key: bytes, *, ttl_s: float) -> bool:  # noqa: ARG002
        """Take it on to generate the answer under a key, for so long; return False if somebody
        else has. A tier without leases lets everybody."""
        return True

    def end_lease(self, namespace: str, exact_key: bytes) -> None:  # noqa: B027 - see `lease`
        """Give a lease back, whoever has it."""

    @abstractmethod
    def namespaces(self) -> list[str]:
        """Return those that hold answers."""

    def answer_ids(self, namespace: str) -> list[str]:
        """Return the names of all that a namespace holds, also of what cannot be read."""
        return [answer.answer_id for answer in self.answers(namespace)]

    def forget(
        self,
        invalidation: Invalidation,
        *,
        text_of: TextOf = lambda answer: answer.prompt_text,
        removed: dict[tuple[str, str], None] | None = None,
    ) -> list[tuple[str, str]]:
        """Announce it to the replicas, then remove what is meant; return what was there.

        `text_of` gives an answer's query, where its record may be without. It is called twice.
        `removed` has what earlier tries removed, and takes what this one does, whether or not it
        gets to its end. Records that cannot be read are only removed where their namespace and id
        say enough.
        """
        # Who hears of it removes what it has written of late, and may be faster than this.
        there = {
            namespace: self._meant(namespace, invalidation, text_of)
            for namespace in filter(invalidation.covers, self.namespaces())
        }
        self.announce(invalidation)
        gone = {} if removed is None else removed
        for namespace in filter(invalidation.covers, {*there, *self.namespaces()}):
            meant = there.get(namespace, {}) | self._meant(namespace, invalidation, text_of)
            names = list(meant)
            for begin in range(0, len(names), _FORGET_BATCH):
                batch = names[begin : begin + _FORGET_BATCH]
                gone.update(((namespace, meant[name]), None) for name in batch)
                self.remove(namespace, batch)
        return list(gone)

    def has_gone_back(self) -> bool:
        """Return whether it may hold again what it had removed, since the last call: a server that
        was restarted with what it held earlier does, and a file in place of another."""
        return False

    def _meant(self, namespace: str, invalidation: Invalidation, text_of: TextOf) -> dict[str, str]:
        """Return what is meant in a namespace: names in this tier, with the ids of the answers."""
        meant: dict[str, str] = {}
        readable: set[str] = set()
        for answer in self.exact_answers(namespace):
            readable.add(answer.stored_id)
            if invalidation.means(answer, text_of(answer)):
                meant[answer.stored_id] = answer.answer_id
        if invalidation.needs_contents or invalidation.is_late:
            answers = self.answers(namespace)
            meant |= {
                a.answer_id: a.answer_id for a in answers if invalidation.means(a, text_of(a))
            }
            return meant
        for name in self.answer_ids(namespace):
            # An answer for exact hits that cannot be read has no other id.
            if name not in readable and invalidation.names(namespace, name):
                meant[name] = name
        return meant

    def announce(self, invalidation: Invalidation) -> None:  # noqa: B027 - memory has no replicas
        """Add an invalidation to the log that replicas follow, once."""

    def invalidations(self, after: str | None) -> InvalidationPage:  # noqa: ARG002
        """Return the log of invalidations beyond a position; None returns all of it, as
        `decode_log`."""
        return InvalidationPage()

    def expire(self) -> None:  # noqa: B027 - not every tier has something to do
        """Remove what is past its time to live; called about once a second."""

    def changes(
        self,
        *,
        anew: bool = False,  # noqa: ARG002
        wants_added: bool = True,  # noqa: ARG002
    ) -> TierChanges:
        """Return what other replicas added and removed since the last call.

        The first call, and one with `anew`, begins now and returns nothing. Without `wants_added`,
        what was added is passed over, and not read.
        """
        return TierChanges()

    @property
    def ahead_s(self) -> float:
        """By how much the clock that its machines share is ahead of this process's."""
        return 0.0

    @property
    def num_damaged(self) -> int:
        """Records skipped because they could not be read."""
        return 0

    def check(self) -> None:  # noqa: B027 - not every tier has something beside its answers
        """Raise TierError if what the answers lie in is damaged, even where they can be read."""

    @abstractmethod
    def close(self) -> None:
        """Release what is held. Idempotent."""
