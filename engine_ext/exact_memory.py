"""Answers kept for exact hits in this process, bounded by bytes, least recently used out first."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from reprise.retrieval.answer import Answer


class _Entry(NamedTuple):
    answer: Answer
    expires_s: float | None
    """On the clock; None: never."""


class ExactMemoryStats(NamedTuple):
    """What the memory holds and has let go."""

    answers: int
    bytes: int
    evicted: int
    expired: int


class ExactMemory:
    """From exact keys to answers. Not thread-safe: it belongs to the event loop.

    Example:
        >>> memory = ExactMemory(max_bytes=1 << 20)
        >>> memory.get(b"a key") is None
        True
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        ttl_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0
        self._evicted = 0
        self._expired = 0

    def get(self, key: bytes) -> Answer | None:
        """The answer under `key`, which counts as a use."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_s is not None and self._clock() >= entry.expires_s:
            self._drop(key)
            self._expired += 1
            return None
        self._entries.move_to_end(key)
        return entry.answer

    def put(self, answer: Answer, *, ttl_s: float | None = None) -> None:
        """Keep `answer` under its exact key, in place of any other there.

        `ttl_s` can only shorten the configured time to live. An answer larger than the whole
        memory is not kept.

        Raises:
            ValueError: the answer has no exact key.
        """
        key = answer.exact_key
        if key is None:
            raise ValueError(f"answer {answer.answer_id} has no exact key: it is for drafts only")
        self._drop(key)
        if answer.num_bytes > self._max_bytes:
            return
        lives_s = min((ttl for ttl in (ttl_s, self._ttl_s) if ttl is not None), default=None)
        expires_s = None if lives_s is None else self._clock() + lives_s
        self._entries[key] = _Entry(answer, expires_s)
        self._bytes += answer.num_bytes
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self._evicted += 1

    def find(
        self,
        *,
        namespace: str | None = None,
        answer_id: str | None = None,
        prompt_token_ids: bytes | None = None,
        older_than_s: float | None = None,
        limit: int | None = None,
    ) -> list[Answer]:
        """Answers that meet every given condition, most recently used first.

        `prompt_token_ids` are little-endian int32 bytes; `older_than_s` counts from now.
        """
        created_before_s = None if older_than_s is None else time.time() - older_than_s
        found: list[Answer] = []
        for entry in reversed(self._entries.values()):
            answer = entry.answer
            if limit is not None and len(found) >= limit:
                break
            if namespace is not None and answer.namespace != namespace:
                continue
            if answer_id is not None and answer.answer_id != answer_id:
                continue
            if prompt_token_ids is not None and answer.prompt_tokens != prompt_token_ids:
                continue
            if created_before_s is not None and answer.created_s > created_before_s:
                continue
            found.append(answer)
        return found

    def remove(self, answers: list[Answer]) -> int:
        """Drop these answers; how many were there."""
        before = len(self._entries)
        for answer in answers:
            if answer.exact_key is not None:
                self._drop(answer.exact_key)
        return before - len(self._entries)

    def clear(self) -> None:
        """Drop everything: the model is not the one any more that gave these answers."""
        self._entries.clear()
        self._bytes = 0

    def namespaces(self) -> dict[str, int]:
        """Number of answers by namespace."""
        return dict(Counter(entry.answer.namespace for entry in self._entries.values()))

    def stats(self) -> ExactMemoryStats:
        """Figures since this process started."""
        return ExactMemoryStats(len(self._entries), self._bytes, self._evicted, self._expired)

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.answer.num_bytes
