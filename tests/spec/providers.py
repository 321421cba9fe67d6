"""A provider that drafts eagerly, and answers to feed it."""

import numpy as np

from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.api.near_answer import PlainNearAnswer


def near(
    answer_id: str, response: list[int], similarity: float = 0.9, clause: int = 0
) -> PlainNearAnswer:
    empty = np.zeros(0, np.int32)
    return PlainNearAnswer(answer_id, similarity, empty, np.array(response, np.int32), clause)


def new_provider(**settings: object) -> DraftProvider:
    return DraftProvider(DraftConfig.model_validate({"verify_cost": 0.02, **settings}))


def replay(
    provider: DraftProvider, request_id: str, answer: list[int], limit: int = 16
) -> list[list[int]]:
    """Feed `answer` through as a greedy engine would; return the drafts."""
    drafts = []
    provider.observe(request_id, answer[:1])
    at = 1
    while at < len(answer):
        draft = provider.propose(request_id, limit=min(limit, len(answer) - at))
        drafts.append(draft)
        accepted = 0
        while accepted < len(draft) and draft[accepted] == answer[at + accepted]:
            accepted += 1
        emitted = answer[at : at + accepted + 1]
        provider.observe(request_id, emitted)
        at += len(emitted)
    return drafts


def answers_of(count: int, length: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    blocks = random.integers(100, 5000, (12, 15)).tolist()
    order = random.integers(0, 12, (count, length // 15))
    return [[token for block in row for token in blocks[block]] for row in order]
