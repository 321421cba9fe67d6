"""What the campaign against vLLM's step asks: most of it ends where it hurts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

BLOCK = 32
"""Tokens of a KV block."""
Settings = dict[str, Any]
_GRAMMARS = ("[a-z ]{4,12}\\.", "(yes|no|maybe) [0-9]{1,4}")


class Question(NamedTuple):
    """What is asked, and how; the answer is the same whenever it is asked."""

    prompt: tuple[int, ...]
    kind: str
    params: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Planned:
    """One request of a campaign."""

    question: Question
    priority: int
    abort_after: int | None
    """Steps after its arrival, after which it is aborted."""


def draw_questions(
    texts: Sequence[Sequence[int]], max_model_len: int, random: np.random.Generator, count: int
) -> list[Question]:
    """Questions about pieces of `texts`, most of which end where it hurts."""
    questions = []
    for _ in range(count):
        kind = str(random.choice(list(_KINDS), p=list(_KINDS.values())))
        text = texts[int(random.integers(len(texts)))]
        # Few starts and many equal pieces: answers come again, and are drafted.
        length = _prompt_length(kind, max_model_len, random)
        begin = BLOCK * int(random.integers(4))
        prompt = tuple(int(token) for token in np.resize(text[begin:] or text, length))
        params = _params(kind, length, max_model_len, random)
        questions.append(Question(prompt, kind, tuple(params.items())))
    return questions


_KINDS = {
    "end of context": 0.30,
    "last block": 0.20,
    "end of answer": 0.13,
    "prompt of whole blocks": 0.10,
    "stop string": 0.08,
    "min_tokens": 0.05,
    "greedy with a seed": 0.05,
    "penalties": 0.04,
    "grammar": 0.05,
}


def _prompt_length(kind: str, max_model_len: int, random: np.random.Generator) -> int:
    if kind == "prompt of whole blocks":
        return 1 + BLOCK * int(random.integers(1, max_model_len // BLOCK))
    if kind == "end of context":
        return max_model_len - int(random.choice([1, 2, 3, 5, 8, 13, 17, 18, 24, 40, 60, 75]))
    return int(random.integers(3, max_model_len - 20))


def _params(kind: str, length: int, max_model_len: int, random: np.random.Generator) -> Settings:
    room = max_model_len - length
    few = int(random.integers(1, 25))
    if kind == "end of context":
        return {"max_tokens": None, "ignore_eos": True}
    if kind == "last block":
        to_its_end = -length % BLOCK + int(random.integers(-1, 2))
        return {"max_tokens": min(room, max(1, to_its_end)), "ignore_eos": True}
    if kind == "stop string":
        return {"max_tokens": min(room, 40), "stop": ("e", "you", "order")[few % 3]}
    if kind == "min_tokens":
        return {"max_tokens": room, "min_tokens": min(few, room)}
    if kind == "greedy with a seed":
        return {"max_tokens": min(room, few), "seed": few}
    if kind == "penalties":
        return {"max_tokens": min(room, few), "repetition_penalty": 1.3}
    if kind == "grammar":
        return {"max_tokens": min(room, 30), "regex": _GRAMMARS[few % len(_GRAMMARS)]}
    return {"max_tokens": min(room, 40)}


def draw_requests(
    questions: Sequence[Question], random: np.random.Generator, count: int
) -> list[Planned]:
    """Requests for some of the questions, many of them more than once."""
    return [
        Planned(
            questions[int(random.integers(len(questions)))],
            priority=int(random.integers(4)),
            abort_after=int(random.integers(1, 40)) if random.random() < 0.15 else None,
        )
        for _ in range(count)
    ]
