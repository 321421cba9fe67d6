"""What a retriever holds in memory: which answers join, leave, and are to be forgotten."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

import msgspec

from reprise.retrieval.api.answer import Answer, AnswerUpdate
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.in_process.answer_reports import AnswerReports
from reprise.retrieval.in_process.exact_writes import ExactWrites
from reprise.retrieval.in_process.recent_removals import Key, RecentRemovals
from reprise.retrieval.in_process.shared_state import SharedState
from reprise.retrieval.tiers.memory_tier import MemoryTier
from reprise.retrieval.tiers.sync.invalidation_index import InvalidationIndex
from reprise.retrieval.tiers.sync.known_invalidations import KnownInvalidations

# Vector of 384 dimensions in float16, graph links and dictionary entries, as measured.
_INDEX_BYTES = 1570
# What a namespace takes in the indexes of vectors, of shared tokens and of the corpus, as measured.
_NAMESPACE_BYTES = 3000
_FULL_SHARE = 0.95
_SHORTLY_S = 600.0
# What a tier removed so soon after an invalidation of its namespace may have been meant.
_FOLLOWS_WITHIN_S = 5.0
_MAX_LATELY = 100


class RetrieverMemory:
    """Answers by (namespace, id), with what follows where one of them joins or leaves.

    An answer that leaves is taken out of near answers not yet picked up, reported to whoever
    mirrors the memory, and queued for the worker to take out of the index.

    Args:
        config: Bounds.
        shared: Where the worker finds what joined and what left, and near answers wait to be picked
            up; prompts to queries, for invalidations by text.
    """

    def __init__(self, config: RetrievalConfig, shared: SharedState) -> None:
        self.tier = MemoryTier(
            max_bytes=config.memory_bytes,
            index_bytes=_INDEX_BYTES,
            namespace_bytes=_NAMESPACE_BYTES,
            max_namespaces=config.max_namespaces,
            ttl_s=config.ttl_s,
        )
        self._queue, self._results, self._queries = shared.queue, shared.results, shared.queries
        self._max_bytes = config.memory_bytes
        self._changed, self._count = shared.changed, shared.count
        self._applied, self._began_s = KnownInvalidations(), steady_clock.now_s()
        self._reports = AnswerReports(max_bytes=config.queue_bytes)
        self._to_erase: set[Key] = set()
        self._to_erase_later: set[Key] = set()
        # What was to be forgotten, the last times, and when that was.
        self._lately: deque[tuple[float, InvalidationIndex]] = deque(maxlen=_MAX_LATELY)
        self.num_forgets = 0
        """Times that something was to be forgotten here; the lock guards it."""
        self.removals = RecentRemovals()
        """Answers that were removed, one by one too; the lock guards it."""
        self.exact = ExactWrites(max_length=config.queue_length, max_bytes=config.queue_bytes)
        """Answers for exact hits that pass through to the tier; the lock guards it."""
        self.joining: Sequence[tuple[Answer, bool]] = ()
        """Answers that the worker indexes now, each with whether it is ours; the lock guards it."""

    @property
    def takes_answers(self) -> bool:
        """Whether there is room for another answer; the caller holds the lock."""
        return self._queue.takes_answers

    def has_room(self) -> bool:
        """Return whether answers join without others having to leave, about."""
        return self.tier.num_bytes < _FULL_SHARE * self._max_bytes

    @property
    def has_erasures(self) -> bool:
        """Whether the worker has traces of answers to erase at once; the caller holds the lock."""
        return bool(self._to_erase)

    @property
    def has_later_erasures(self) -> bool:
        """Whether it has some that can wait; the caller holds the lock."""
        return bool(self._to_erase_later)

    def answer(self, namespace: str, answer_id: str) -> Answer | None:
        """Return an answer that is held."""
        return self.tier.get(namespace, [answer_id])[0]

    def answers(self) -> list[Answer]:
        """Return all answers that are held."""
        return [a for name in self.tier.namespaces() for a in self.tier.answers(name)]

    def take_updates(self) -> list[AnswerUpdate]:
        """Return, once, which answers joined and left; the caller holds the lock."""
        return self._reports.take(self.answer)

    def reported_keys(self) -> list[Key]:
        """Return (namespace, answer id) of all answers that are held, but for those that have yet
        to be reported for want of room; the caller holds the lock."""
        held = self.tier.keys()
        return [key for key in held if not self._reports.waits(key)]

    def admit(self, answers: Sequence[Answer], *, ours: bool) -> None:
        """Hold answers, report them, and have the worker index them; the caller holds the lock."""
        if ours:
            answers = [answer for answer in answers if not self.was_forgotten(answer)]
        answers = [a for a in answers if not self.tier.is_copy(a.namespace, a.answer_id)]
        keyed = {(a.namespace, a.answer_id): a for a in answers}
        # What is replaced leaves first, wherever it is known: the index has its prompt's vector.
        held = {key: self.answer(*key) for key in keyed if self.tier.holds(*key)}
        replaced = [k for k, old in held.items() if not old or _say_two_things(old, keyed[k])]
        if replaced:
            self._take_out(replaced)
        new = {key: answer for key, answer in keyed.items() if not self.tier.holds(*key)}
        # The index holds the vector: once is enough.
        bare = [msgspec.structs.replace(a, embedding=b"", embedder="") for a in answers]
        gone = dict.fromkeys(self.tier.put(bare))
        for key, answer in new.items():
            if key not in gone:
                self._count(stored=1, resyncs=self._reports.joined(answer))
        self._note_gone([key for key in gone if key not in new])
        self._queue.put_answers(answers, ours=ours)
        self._changed.notify_all()

    def lacks(self, answer: Answer) -> bool:
        """Return whether an answer of the tier is not held: nothing of its id is, or what says
        another thing and is no newer."""
        held = self.answer(answer.namespace, answer.answer_id)
        if held is None:
            return True
        return _say_two_things(held, answer) and held.created_s <= answer.created_s

    def fold(self, namespace: str, answer_id: str, *, into: str) -> bool:
        """Have an answer leave because another one says nearly the same; returns whether it did."""
        with self._changed:
            if not self.tier.fold(namespace, answer_id, into=into):
                return False
            key = (namespace, answer_id)
            self._count(resyncs=self._reports.left(key), duplicates=1)
            self._queue.put_gone([key])
            return True

    def admit_orphans(self, answers: Sequence[Answer]) -> None:
        """Hold answers again that another one stood for, until that was removed, unless they were
        meant too. What the tier still holds after what was made before this process began may have
        been imported since, whatever its age."""
        with self._changed:
            wanted = [a for a in answers if not self.was_forgotten(a, since_s=self._began_s)]
            self.admit(wanted, ours=False)

    def held(self) -> set[Key]:
        """Return what is held here and is not on its way to the tier."""
        with self._changed:
            names = self.tier.namespaces()
            held = {(name, i) for name in names for i in self.tier.answer_ids(name)}
            return held - self._under_way()

    def lose_under_way(self) -> None:
        """Remove what is on its way to the tier: any of it may be meant by what is not known."""
        with self._changed:
            self.num_forgets += 1
            self.exact.drop(lambda _: True)
            self.remove(list(self._under_way()))

    def _under_way(self) -> set[Key]:
        """Return our answers that the worker has yet to have written; the caller holds the lock."""
        return {
            (answer.namespace, answer.answer_id)
            for answer, ours in (*self._queue.answers, *self.joining)
            if ours
        }

    @property
    def forgets_of_late(self) -> bool:
        """Whether something was to be forgotten since this began, or shortly before; the caller
        holds the lock."""
        return self._applied.any_since(self._began_s - _SHORTLY_S)

    def has_forgotten(self, invalidation: Invalidation) -> bool:
        """Return whether an invalidation has been carried out here."""
        return invalidation in self._applied

    def forget(self, invalidations: Sequence[Invalidation]) -> list[Key]:
        """Forget in this process; the (namespace, id) that were there."""
        if not invalidations:
            return []
        index = InvalidationIndex(invalidations)
        is_meant = partial(index.means, text_of=self._text_of)
        with self._changed:
            self._applied.add(invalidations)
            self._lately.append((steady_clock.now_s(), index))
            self.num_forgets += 1
            self.exact.drop(is_meant)
            # It may mean what left a moment ago.
            self._to_erase |= self._to_erase_later
            self._to_erase_later.clear()
        meant = [
            (namespace, answer.answer_id)
            for namespace in filter(index.covers, self.tier.namespaces())
            for answer in self.tier.answers(namespace)
            if is_meant(answer)
        ]
        return self.remove(meant)

    def remove(self, keys: Sequence[Key]) -> list[Key]:
        """Remove answers that are to be forgotten, here and wherever they are shared; those that
        were there."""
        with self._changed:
            gone = self._take_out(keys)
            if keys:
                # The worker leaves no trace of them, whether or not they were still here.
                self._to_erase.update(keys)
                self._changed.notify_all()
        return gone

    def follow_removal(self, keys: Sequence[Key]) -> None:
        """Remove answers that the tier no longer holds: room was made there, they expired, or
        another replica had them forgotten, be they held here or not."""
        since_s, namespaces = steady_clock.now_s() - _FOLLOWS_WITHIN_S, {name for name, _ in keys}
        with self._changed:
            self._take_out(keys)
            lately = [index for at_s, index in self._lately if at_s >= since_s]
            if any(index.covers(name) for index in lately for name in namespaces):
                self._to_erase.update(keys)
                self._changed.notify_all()
            else:
                self._to_erase_later.update(keys)

    def expire(self) -> None:
        """Remove the answers whose time is over."""
        with self._changed:
            expired = self.tier.expired()
            self._note_gone(expired)
            self._to_erase_later.update(expired)
            self._results.forget(set(expired))

    def take_erasures(self, *, later_too: bool) -> tuple[set[Key], bool]:
        """Return, once, the answers of which no trace is to be left, and whether that cannot wait;
        the caller holds the lock."""
        is_urgent = bool(self._to_erase)
        if not (is_urgent or later_too):
            return set(), False
        erased = self._to_erase | self._to_erase_later
        self._to_erase, self._to_erase_later = set(), set()
        return erased, is_urgent

    def put_back_erasures(self, keys: Iterable[Key]) -> None:
        """Have these erased once more, which has failed; the caller holds the lock."""
        self._to_erase.update(keys)

    def take_joined(self, answers: Iterable[Answer]) -> list[Answer]:
        """End the indexing of a batch; return those of these answers that are still held. The
        caller holds the lock."""
        self.joining = ()
        return [a for a in answers if self.answer(a.namespace, a.answer_id)]

    def _text_of(self, answer: Answer) -> str:
        """Return an answer's query."""
        return answer.prompt_text or self._queries.read(None, answer.prompt_token_ids)

    def was_forgotten(self, answer: Answer, *, since_s: float = float("-inf")) -> bool:
        """Return whether it was on its way here when it was to be forgotten, by what was made since
        then; the caller holds the lock."""
        since_s = max(answer.created_s, since_s)
        return self._applied.mean_since(since_s, answer, text_of=self._text_of)

    def _take_out(self, keys: Sequence[Key]) -> list[Key]:
        """Remove answers, also of what was found; those that were there. The caller holds the
        lock."""
        gone = [key for key in keys if self.tier.remove(key[0], [key[1]])]
        self._note_gone(gone)
        self._results.forget(set(keys))
        self.removals.note(keys)
        return gone

    def _note_gone(self, gone: Sequence[Key]) -> None:
        """Report that answers left memory; the caller holds the lock."""
        for key in gone:
            self._count(resyncs=self._reports.left(key))
        self._queue.put_gone(gone)
        self._count(evicted=len(gone))


def _say_two_things(one: Answer, other: Answer) -> bool:
    """Return whether two answers of one id differ in prompt or response."""
    if (one.prompt_tokens, one.response_tokens) != (other.prompt_tokens, other.response_tokens):
        return True
    texts = {one.prompt_text, other.prompt_text} - {""}  # without one it is read of the tokens
    return len(texts) > 1
