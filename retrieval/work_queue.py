"""What waits for a retriever's worker thread, and how much of it makes one turn."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from .answer import Answer

# Answers that bring their embedding join at next to no cost.
_MOST_ANSWERS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's prompt, as text or as token ids [p]."""

    request_id: str
    namespace: str
    text: str | None
    prompt_token_ids: NDArray[Any] | None


@dataclass(slots=True)
class Work:
    """A turn's worth of work."""

    prompts: list[Prompt] = field(default_factory=list)
    answers: list[tuple[Answer, bool]] = field(default_factory=list)
    """(answer, whether it is to be written to the tier)"""
    gone: list[tuple[str, str]] = field(default_factory=list)
    """(namespace, answer id) that left memory"""

    def __bool__(self) -> bool:
        return bool(self.prompts or self.answers or self.gone)


class WorkQueue:
    """Prompts, answers and ids that left, each in their order; not thread-safe."""

    def __init__(self) -> None:
        self.prompts: deque[Prompt] = deque()
        self.answers: deque[tuple[Answer, bool]] = deque()
        self.gone: deque[tuple[str, str]] = deque()

    def __bool__(self) -> bool:
        return bool(self.prompts or self.answers or self.gone)

    def take(self, batch_size: int) -> Work:
        """All that left, and of the rest as much as `batch_size` texts to embed allow of each."""
        count = min(batch_size, len(self.prompts))
        work = Work(
            [self.prompts.popleft() for _ in range(count)],
            self._take_answers(batch_size),
            list(self.gone),
        )
        self.gone.clear()
        return work

    def _take_answers(self, batch_size: int) -> list[tuple[Answer, bool]]:
        taken: list[tuple[Answer, bool]] = []
        to_embed = 0
        while self.answers and len(taken) < _MOST_ANSWERS_AT_ONCE:
            to_embed += not self.answers[0][0].embedding
            if to_embed > batch_size:
                break
            taken.append(self.answers.popleft())
        return taken
