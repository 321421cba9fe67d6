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
"""Of prompt and answer together; what is longer is not kept."""


class RecordedAnswer(NamedTuple):
    """One answer, and how it came about."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    record: RecordedRequest


class RecordedAnswers:
    """Keeps the last `MAX_RECORDED` of each of the `_MAX_NAMESPACES` last namespaces, in this
    process. Event loop only."""

    def __init__(self) -> None:
        self._by_namespace: OrderedDict[str, deque[RecordedAnswer]] = OrderedDict()

    def add(self, namespace: str, answer: RecordedAnswer) -> None:
        """Keep an answer; not that of a request that shares nothing, nor a very long one."""
        if is_private(namespace):
            return
        if len(answer.prompt_token_ids) + len(answer.token_ids) > _MAX_TOKENS:
            return
        kept = self._by_namespace.setdefault(namespace, deque(maxlen=MAX_RECORDED))
        kept.append(answer)
        self._by_namespace.move_to_end(namespace)
        while len(self._by_namespace) > _MAX_NAMESPACES:
            self._by_namespace.popitem(last=False)

    def of(self, namespace: str) -> Sequence[RecordedAnswer]:
        """Return those of this namespace and no other, the last one first."""
        return list(reversed(self._by_namespace.get(namespace, ())))

    def forget(self, invalidation: Invalidation) -> None:
        """Drop all of every namespace of which answers were to be forgotten: better too many."""
        for namespace in [one for one in self._by_namespace if invalidation.covers(one)]:
            del self._by_namespace[namespace]
