"""What waits for a retriever's worker thread, and how much of it makes one batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from reprise.retrieval.api.answer import Answer

# Answers that bring their embedding join at next to no cost.
_MAX_ANSWERS_AT_ONCE = 256
_OVERHEAD_BYTES = 400


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's prompt, as text or as token ids [p]."""

    request_id: str
    namespace: str
    text: str | None
    prompt_token_ids: NDArray[Any] | None

    @property
    def num_bytes(self) -> int:
        """What it takes while it waits, about."""
        ids = self.prompt_token_ids
        return _OVERHEAD_BYTES + len(self.text or "") + (0 if ids is None else ids.nbytes)


@dataclass(slots=True)
class Work:
    """A batch of work of each kind."""

    prompts: list[Prompt] = field(default_factory=list)
    answers: list[tuple[Answer, bool]] = field(default_factory=list)
    """(answer, whether it is to be written to the tier)"""
    gone: list[tuple[str, str]] = field(default_factory=list)
    """(namespace, answer id) that left memory"""

    def __bool__(self) -> bool:
        return bool(self.prompts or self.answers or self.gone)


class WorkQueue:
    """Prompts, answers and ids that left, each in their order; not thread-safe.

    Args:
        max_length: Bound on the number of prompts, and on that of answers.
        max_bytes: Bound on the bytes of prompts, and on those of answers.
    """

    def __init__(self, *, max_length: int, max_bytes: int) -> None:
        self._max_length, self._max_bytes = max_length, max_bytes
        self._prompts: deque[Prompt] = deque()
        self._answers: deque[tuple[Answer, bool]] = deque()
        # Each once, however often it came and went: no more than were ever held at once.
        self._gone: dict[tuple[str, str], None] = {}
        self._prompt_bytes = self._answer_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._prompts or self._answers or self._gone)

    @property
    def num_answers(self) -> int:
        """Answers waiting."""
        return len(self._answers)

    @property
    def answers(self) -> tuple[tuple[Answer, bool], ...]:
        """(answer, whether it is to be written to the tier) of those waiting."""
        return tuple(self._answers)

    @property
    def num_gone(self) -> int:
        """Answers that left memory, waiting to leave the index."""
        return len(self._gone)

    @property
    def takes_answers(self) -> bool:
        """Whether there is room for another answer, whatever its size."""
        return len(self._answers) < self._max_length and self._answer_bytes < self._max_bytes

    def put_prompt(self, prompt: Prompt) -> bool:
        """Let a prompt wait; False if there is no room for it."""
        full = len(self._prompts) >= self._max_length
        if full or self._prompt_bytes + prompt.num_bytes > self._max_bytes:
            return False
        self._prompts.append(prompt)
        self._prompt_bytes += prompt.num_bytes
        return True

    def put_answers(self, answers: Iterable[Answer], *, ours: bool) -> None:
        """Let answers wait, in any case: whoever brings them asks `takes_answers` before."""
        for answer in answers:
            self._answers.append((answer, ours))
            self._answer_bytes += answer.num_bytes

    def put_gone(self, gone: Iterable[tuple[str, str]]) -> None:
        """Note (namespace, answer id) that left memory."""
        self._gone.update(dict.fromkeys(gone))

    def take(self, batch_size: int) -> Work:
        """Return all that left, and of the rest as much as `batch_size` texts to embed allow of
        each."""
        count = min(batch_size, len(self._prompts))
        prompts = [self._prompts.popleft() for _ in range(count)]
        self._prompt_bytes -= sum(prompt.num_bytes for prompt in prompts)
        work = Work(prompts, self._take_answers(batch_size), list(self._gone))
        self._gone.clear()
        return work

    def _take_answers(self, batch_size: int) -> list[tuple[Answer, bool]]:
        taken: list[tuple[Answer, bool]] = []
        to_embed = 0
        while self._answers and len(taken) < _MAX_ANSWERS_AT_ONCE:
            to_embed += not self._answers[0][0].embedding
            if to_embed > batch_size:
                break
            taken.append(self._answers.popleft())
            self._answer_bytes -= taken[-1][0].num_bytes
        return taken
