"""The last answers that their clients asked to be recorded, of each namespace by itself."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from reprise.engine_ext.answer_page.records import MAX_RECORDED
from reprise.engine_ext.request.tenants import is_private
from reprise.retrieval.api.invalidation import Invalidation
from reprise.spec.api.recorded_steps import RecordedRequest

_MAX_NAMESPACES = 64
_MAX_TOKENS = 32_768
"""Of one answer, its prompt, its drafts and its near questions; what is longer is not kept."""
_MAX_TOKENS_IN_ALL = 1 << 19


class RecordedAnswer(NamedTuple):
    """One answer, and how it came about."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    record: RecordedRequest

    @property
    def num_tokens(self) -> int:
        """Token ids in it, which is what its memory goes by."""
        drafted = sum(len(step.draft) for step in self.record.steps)
        asked = sum(len(near.prompt_token_ids) for near in self.record.near.values())
        return len(self.prompt_token_ids) + len(self.token_ids) + drafted + asked


class RecordedAnswers:
    """Keeps the last `MAX_RECORDED` of each of the `_MAX_NAMESPACES` last namespaces, in this
    process; of the namespace that waits longest for a new one, fewer, where there is no room for
    all. Event loop only."""

    def __init__(self) -> None:
        self._by_namespace: OrderedDict[str, deque[RecordedAnswer]] = OrderedDict()
        self._num_tokens = 0

    def add(self, namespace: str, answer: RecordedAnswer) -> None:
        """Keep an answer; not that of a request that shares nothing, nor a very long one."""
        if is_private(namespace):
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
        for namespace in [one for one in self._by_namespace if invalidation.covers(one)]:
            dropped = self._by_namespace.pop(namespace)
            self._num_tokens -= sum(answer.num_tokens for answer in dropped)
