"""Prompts that wait in a client until there is a retrieval process to send them to."""

from __future__ import annotations

from reprise.retrieval.service.wire import Submit

_OVERHEAD_BYTES = 100


class HeldPrompts:
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
