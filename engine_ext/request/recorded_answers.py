"""The last answers that their clients asked to be recorded, of each namespace by itself."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from reprise.engine_ext.answer_page.records import MAX_RECORDED
from reprise.engine_ext.request.tenants import is_private
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock
from reprise.spec.api.recorded_steps import RecordedRequest

_MAX_NAMESPACES = 64
_MAX_TOKENS = 32_768
"""Of one answer, its prompt, its drafts and its near questions; what is longer is not kept."""
_MAX_TOKENS_IN_ALL = 1 << 19
_MAX_FORGETS = 1000
# Until then workers may draft from what is forgotten here.
_REACHES_WORKERS_S = 2.0


class RecordedAnswer(NamedTuple):
    """One answer, and how it came about."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    record: RecordedRequest
    begun_s: float
    """When its request came, in seconds since 1970."""

    @property
    def num_tokens(self) -> int:
        """Token ids in it, which is what its memory goes by."""
        drafted = sum(len(step.draft) for step in self.record.steps)
        asked = sum(len(near.prompt_token_ids) for near in self.record.near.values())
        return len(self.prompt_token_ids) + len(self.token_ids) + drafted + asked


class RecordedAnswers:
    """Keeps the last `MAX_RECORDED` of each of the `_MAX_NAMESPACES` last namespaces, in this
    process; of the namespace that waits longest for a new one, fewer, where there is no room for
    all. Event loop only.

    Args:
        ttl_s: For how long; None: until others take their place.
    """

    def __init__(self, *, ttl_s: float | None = None) -> None:
        self._by_namespace: OrderedDict[str, deque[RecordedAnswer]] = OrderedDict()
        self._num_tokens = 0
        self._ttl_s = ttl_s
        self._forgets: deque[tuple[float, Invalidation]] = deque(maxlen=_MAX_FORGETS)
        """The last ones, each with when it came here."""

    def add(self, namespace: str, answer: RecordedAnswer) -> None:
        """Keep an answer; not that of a request that shares nothing, nor a very long one, nor one
        that may show something that was to be forgotten since its request came."""
        if is_private(namespace) or self._may_show_forgotten(namespace, answer.begun_s):
            return
        if answer.num_tokens > _MAX_TOKENS:
            return
        kept = self._by_namespace.setdefault(namespace, deque())
        kept.append(answer)
        self._num_tokens += answer.num_tokens
        self._by_namespace.move_to_end(namespace)
        if len(kept) > MAX_RECORDED:
            self._num_tokens -= kept.popleft().num_tokens
        while self._num_tokens > _MAX_TOKENS_IN_ALL or len(self._by_namespace) > _MAX_NAMESPACES:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        namespace, kept = next(iter(self._by_namespace.items()))
        self._num_tokens -= kept.popleft().num_tokens
        if not kept:
            del self._by_namespace[namespace]

    def of(self, namespace: str) -> Sequence[RecordedAnswer]:
        """Return those of this namespace and no other, the last one first."""
        return list(reversed(self._by_namespace.get(namespace, ())))

    def forget(self, invalidation: Invalidation) -> None:
        """Drop all of every namespace of which answers were to be forgotten: better too many."""
        self._forgets.append((steady_clock.now_s(), invalidation))
        for namespace in [one for one in self._by_namespace if invalidation.covers(one)]:
            dropped = self._by_namespace.pop(namespace)
            self._num_tokens -= sum(answer.num_tokens for answer in dropped)

    def expire(self) -> None:
        """Drop what is past its time."""
        if self._ttl_s is None:
            return
        oldest_s = steady_clock.now_s() - self._ttl_s
        for namespace, kept in list(self._by_namespace.items()):
            for answer in [each for each in kept if each.begun_s < oldest_s]:
                kept.remove(answer)
                self._num_tokens -= answer.num_tokens
            if not kept:
                del self._by_namespace[namespace]

    def _may_show_forgotten(self, namespace: str, begun_s: float) -> bool:
        lately = [
            invalidation
            for came_s, invalidation in self._forgets
            if begun_s <= came_s + _REACHES_WORKERS_S
        ]
        return len(lately) == _MAX_FORGETS or any(each.covers(namespace) for each in lately)
