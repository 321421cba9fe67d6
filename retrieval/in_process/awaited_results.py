"""What is searched for, and what was found, by request id."""

from __future__ import annotations

from collections import OrderedDict

from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.near_answer import NearAnswer


class AwaitedResults:
    """Near answers of requests; not thread-safe.

    Args:
        max_requests: Requests remembered: bounds what callers that never discard can leave behind.
    """

    def __init__(self, *, max_requests: int) -> None:
        self._max_requests = max_requests
        self._results: OrderedDict[str, list[NearAnswer] | None] = OrderedDict()
        self._clauses: dict[str, list[FoundClause]] = {}
        """Of those that were given and have some."""
        self.num_given = 0
        """Results so far."""

    def expect(self, request_id: str) -> None:
        """Begin a search; what an earlier one found is forgotten."""
        self.discard(request_id)
        self._results[request_id] = None
        while len(self._results) > self._max_requests:
            oldest, _ = self._results.popitem(last=False)
            self._clauses.pop(oldest, None)

    def is_awaited(self, request_id: str) -> bool:
        """Return whether a result is wanted and not there; the request may be over by now."""
        return self._results.get(request_id, []) is None

    def give(
        self,
        request_id: str,
        near_answers: list[NearAnswer],
        clauses: list[FoundClause] | None = None,
    ) -> bool:
        """Let a request that is awaited have its near answers; False if it is not awaited."""
        if not self.is_awaited(request_id):
            return False
        self._results[request_id] = near_answers
        if clauses:
            self._clauses[request_id] = clauses
        self.num_given += 1
        return True

    def get(self, request_id: str) -> list[NearAnswer] | None:
        """Return the near answers; None while they are not there, or for an unknown id."""
        return self._results.get(request_id)

    def clauses(self, request_id: str) -> list[FoundClause]:
        """Return the clauses that its question was found to have; none for an unknown id."""
        return self._clauses.get(request_id, [])

    def discard(self, request_id: str) -> None:
        """Forget a request."""
        self._results.pop(request_id, None)
        self._clauses.pop(request_id, None)

    def forget(self, keys: set[tuple[str, str]]) -> None:
        """Take answers (namespace, id) out of what was found."""
        for request_id, near_answers in self._results.items():
            if near_answers and any((n.namespace, n.answer_id) in keys for n in near_answers):
                kept = [n for n in near_answers if (n.namespace, n.answer_id) not in keys]
                self._results[request_id] = kept
