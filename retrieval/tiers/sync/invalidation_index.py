"""Many invalidations at once: whether one of them means an answer, without trying each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation, prompt_digests

_NEVER_S = float("-inf")
_Scope = tuple[str | None, str | None]
"""Namespace and tenant, of which at most one is given."""
_Conditions = tuple[object, ...]


class InvalidationIndex:
    """Invalidations by the narrowest of their conditions; not thread-safe.

    Of those with the same conditions only the newest are kept: what an older one means, they mean.
    """

    def __init__(self, invalidations: Iterable[Invalidation] = ()) -> None:
        self._alike: dict[tuple[str, object], dict[_Conditions, list[Invalidation]]] = {}
        self.newest_s = _NEVER_S
        """When the newest of all was made."""
        self._scopes: set[_Scope] = set()
        # When the newest was made in each scope that asks for a prompt.
        self._prompts_s: dict[_Scope, float] = {}
        for each in invalidations:
            self.add(each)

    def add(self, invalidation: Invalidation) -> None:
        """Compare answers with this one too."""
        scope = (invalidation.namespace, invalidation.tenant)
        self._scopes.add(scope)
        self.newest_s = max(self.newest_s, invalidation.made_s)
        if invalidation.needs_text:
            newest_s = self._prompts_s.get(scope, _NEVER_S)
            self._prompts_s[scope] = max(newest_s, invalidation.made_s)
        alike = self._alike.setdefault(_narrowest(invalidation), {})
        conditions = _conditions(invalidation)
        before = alike.get(conditions, [])
        if not any(_includes(each, invalidation) for each in before):
            left = [each for each in before if not _includes(invalidation, each)]
            alike[conditions] = [*left, invalidation]

    def covers(self, namespace: str) -> bool:
        """Return whether answers of this namespace may be meant."""
        return not self._scopes.isdisjoint(_scopes_of(namespace))

    def means(
        self,
        answer: Answer,
        *,
        since_s: float = _NEVER_S,
        text_of: Callable[[Answer], str] = lambda answer: answer.prompt_text,
    ) -> bool:
        """Return whether one of those made since then means an answer.

        Args:
            answer: To be compared.
            since_s: When the oldest was made that counts.
            text_of: Returns an answer's query (see `turns`); called only where that is asked for.
        """
        if since_s > self.newest_s:
            return False
        scopes = list(_scopes_of(answer.namespace))
        if self._scopes.isdisjoint(scopes):
            return False
        text: str | None = None
        digests: Iterable[bytes] = ()
        if any(self._prompts_s.get(scope, _NEVER_S) >= since_s for scope in scopes):
            text = text_of(answer)
            digests = prompt_digests(text)
        return any(
            each.made_s >= since_s and each.means(answer, text)
            for alike in self._found(answer, scopes, digests)
            for each in alike
        )

    def _found(
        self, answer: Answer, scopes: Iterable[_Scope], digests: Iterable[bytes]
    ) -> Iterator[list[Invalidation]]:
        """Yield what agrees with an answer in the narrowest condition."""
        keys: list[tuple[str, object]] = [("answer", answer.answer_id), ("model", answer.model_key)]
        keys += [("prompt", digest) for digest in digests]
        keys += [("scope", scope) for scope in scopes]
        for key in keys:
            yield from self._alike.get(key, {}).values()


def _scopes_of(namespace: str) -> Iterator[_Scope]:
    """Yield the scopes that a namespace is in."""
    yield (None, None)
    yield (namespace, None)
    end = len(namespace)
    while end > 0:
        yield (None, namespace[:end])
        end = namespace.rfind(".", 0, end)


def _narrowest(invalidation: Invalidation) -> tuple[str, object]:
    """Return the condition that the fewest answers meet, if any."""
    if invalidation.answer_id is not None:
        return ("answer", invalidation.answer_id)
    if invalidation.prompt_digest is not None:
        return ("prompt", invalidation.prompt_digest)
    if invalidation.namespace is not None or invalidation.tenant is not None:
        return ("scope", (invalidation.namespace, invalidation.tenant))
    if invalidation.model_key is not None:
        return ("model", invalidation.model_key)
    return ("scope", (None, None))


def _conditions(invalidation: Invalidation) -> _Conditions:
    """Return the conditions that are not times, and which of the others there are."""
    return (
        invalidation.namespace,
        invalidation.tenant,
        invalidation.answer_id,
        invalidation.prompt_digest,
        invalidation.model_key,
        invalidation.created_before_s is None,
    )


def _includes(one: Invalidation, other: Invalidation) -> bool:
    """Return whether one means all that another of the same conditions does, at any time."""
    if one.made_s < other.made_s:
        return False
    if one.created_before_s is None or other.created_before_s is None:
        return True
    return one.created_before_s >= other.created_before_s
