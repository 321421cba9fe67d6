"""What waits in a client until there is a retrieval process to send it to."""

from __future__ import annotations

from collections import deque

from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.service.wire import Discard, Request, Store, Submit
from reprise.retrieval.tiers.record import decode_record

_OVERHEAD_BYTES = 100


class HeldMessages:
    """Prompts and answers, each kind within bounds of its own; not thread-safe.

    Args:
        max_length: Bound on the number of either.
        max_bytes: Bound on the bytes of either.
    """

    def __init__(self, *, max_length: int, max_bytes: int) -> None:
        self._answers = _HeldAnswers(max_length=max_length, max_bytes=max_bytes)
        self._prompts = _HeldPrompts(max_length=max_length, max_bytes=max_bytes)

    def put(self, message: Store | Submit | Discard) -> bool:
        """Hold a message, or none of a request that is over; False if there is no room for it."""
        match message:
            case Store():
                return self._answers.put(message)
            case Submit():
                return self._prompts.put(message)
            case Discard(request_id):
                self._prompts.discard(request_id)
                return True

    def forget(self, invalidation: Invalidation) -> None:
        """Drop what is to be forgotten."""
        self._answers.forget(invalidation)

    def take(self) -> list[Request]:
        """Return all of them; they are gone from here."""
        return [*self._answers.take(), *self._prompts.take()]


class _HeldAnswers:
    """Messages that store answers, oldest first; not thread-safe.

    Args:
        max_length: Bound on their number.
        max_bytes: Bound on the bytes of their records.
    """

    def __init__(self, *, max_length: int, max_bytes: int) -> None:
        self._max_length, self._max_bytes = max_length, max_bytes
        self._held: deque[Store] = deque()
        self._num_bytes = 0

    def put(self, message: Store) -> bool:
        """Hold an answer; False if there is no room for it."""
        num_bytes = self._num_bytes + len(message.record)
        if len(self._held) >= self._max_length or num_bytes > self._max_bytes:
            return False
        self._held.append(message)
        self._num_bytes = num_bytes
        return True

    def forget(self, invalidation: Invalidation) -> None:
        """Drop what is to be forgotten."""
        self._held = deque(store for store in self._held if not _is_meant(store, invalidation))
        self._num_bytes = sum(len(store.record) for store in self._held)

    def take(self) -> list[Store]:
        """Return all of them; they are gone from here."""
        taken = list(self._held)
        self._held.clear()
        self._num_bytes = 0
        return taken


def _is_meant(store: Store, invalidation: Invalidation) -> bool:
    """Return whether an answer that waits here is to be forgotten; where its text is not known, and
    a prompt is asked for, it goes too."""
    answer = decode_record(store.record)
    if invalidation.needs_text and not answer.prompt_text:
        return invalidation.covers(answer.namespace)
    return invalidation.means(answer)


class _HeldPrompts:
    """Messages that submit prompts, oldest first, one for each request; not thread-safe.

    Args:
        max_length: Bound on their number.
        max_bytes: Bound on the bytes of their texts and token ids.
    """

    def __init__(self, *, max_length: int, max_bytes: int) -> None:
        self._max_length, self._max_bytes = max_length, max_bytes
        self._held: dict[str, Submit] = {}
        self._num_bytes = 0

    def put(self, message: Submit) -> bool:
        """Hold a prompt in place of the request's earlier one; False if there is no room."""
        self.discard(message.request_id)
        num_bytes = self._num_bytes + _num_bytes(message)
        if len(self._held) >= self._max_length or num_bytes > self._max_bytes:
            return False
        self._held[message.request_id] = message
        self._num_bytes = num_bytes
        return True

    def discard(self, request_id: str) -> None:
        """Forget a request: it is over."""
        message = self._held.pop(request_id, None)
        if message is not None:
            self._num_bytes -= _num_bytes(message)

    def take(self) -> list[Submit]:
        """Return all of them; they are gone from here."""
        taken = list(self._held.values())
        self._held.clear()
        self._num_bytes = 0
        return taken


def _num_bytes(message: Submit) -> int:
    return _OVERHEAD_BYTES + len(message.prompt_tokens) + len(message.text or "")
