"""Reliability of the probabilities that drafts are made by: what was said against what came.

A bin counts as occupied from 400 predictions on: the standard error of its share is then at most
0.025. What is said of a drafted token is the probability that the draft is right up to and with it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.replay import fill_cache
from reprise.eval.replay.reprise_drafter import RepriseDrafter
from reprise.eval.replay.token_rows import load_tokenizer, tokenize_rows
from reprise.eval.replay.traces import load_trace
from reprise.retrieval.search.embedding import Embedder
from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.api.near_answer import PlainNearAnswer

LEAST_PREDICTIONS = 400
LEARNED = 100  # demo requests before those that count


class Draft(NamedTuple):
    """What was said of each token: that the draft is right up to it; and how many were right."""

    probs: list[float]
    accepted: int


def follow(provider: DraftProvider, request_id: str, answer: list[int]) -> Iterator[Draft]:
    """Run a started request as a greedy engine would."""
    req_idx = provider._live[request_id].req_idx  # type: ignore[union-attr]
    provider.observe(request_id, answer[:1])
    at = 1
    while at < len(answer):
        room = len(answer) - at
        most = min(room, provider.config.num_speculative_tokens)
        draft = provider.propose(request_id, limit=most)
        probs = provider._table.trace.probs[req_idx, : len(draft)].tolist()
        accepted = 0
        while accepted < len(draft) and draft[accepted] == answer[at + accepted]:
            accepted += 1
        yield Draft(probs, accepted)
        provider.observe(request_id, answer[at : at + accepted + 1])
        at += accepted + 1


def demo_drafts(seed: int) -> list[Draft]:
    """Drafts on a demo trace, a word or mark being a token, near answers by common words."""
    ids: dict[str, int] = {}
    rows = []
    for row in make_demo_trace(seed):
        words = re.findall(r"\w+|[^\w\s]", row.response)
        answer = [ids.setdefault(word, len(ids)) for word in words]
        rows.append((set(re.findall(r"\w+", row.prompt.lower())), answer))
    provider = DraftProvider(DraftConfig(verify_cost=0.005))
    drafts: list[Draft] = []
    for i, (words_of_prompt, answer) in enumerate(rows):
        alike = [len(words_of_prompt & o) / len(words_of_prompt | o) for o, _ in rows[:i]]
        near = [
            PlainNearAnswer(str(k), alike[k], np.zeros(0, np.int32), np.array(rows[k][1]))
            for k in sorted(range(i), key=lambda k: -alike[k])[:16]
        ]
        provider.start("r", [1, 2, 3])
        provider.attach("r", near)
        own = list(follow(provider, "r", answer))
        provider.finish("r")
        provider.add_answer(str(i), answer)
        drafts += own if i >= LEARNED else []
    return drafts


def recorded_drafts(folder: Path, name: str) -> list[Draft]:
    """Drafts on a recorded trace, with the retriever's near answers."""
    tokenizer = load_tokenizer(str(folder / "tokenizers" / "gpt2.json"))
    rows = tokenize_rows(load_trace(str(folder / "traces" / f"{name}.jsonl")), tokenizer)
    drafter = RepriseDrafter(embedder=Embedder(), cost=0.005, draft_length=64)
    fill_cache(drafter, rows)
    drafts: list[Draft] = []
    for row in rows:
        if not row.warm:
            drafter.look_up(row)
            drafter.start(row)
            drafts += follow(drafter._provider, row.request_id, row.response_token_ids.tolist())
            drafter.finish(row, joins=row.cached_token_ids is None)
    drafter.close()
    return drafts


def of_drafts(drafts: list[Draft]) -> list[tuple[float, bool]]:
    """(probability, came) of all drafted tokens: the draft up to there."""
    return [(prob, k < draft.accepted) for draft in drafts for k, prob in enumerate(draft.probs)]


def errors(said_and_came: list[tuple[float, bool]]) -> tuple[list[float], float]:
    """(|said - came| of each occupied bin of ten, their mean weighted by predictions)."""
    said, came = (np.array(column, np.float64) for column in zip(*said_and_came, strict=True))
    bins = np.minimum(9, (10 * said).astype(int))
    sizes = np.bincount(bins, minlength=10)
    gaps = np.bincount(bins, said - came, minlength=10)
    occupied = sizes >= LEAST_PREDICTIONS
    found = np.abs(gaps[occupied] / sizes[occupied])
    return found.tolist(), float(np.average(found, weights=sizes[occupied]))


def test_probabilities_of_drafts_on_a_generated_trace() -> None:
    """A bound, not a goal: templates make runs of near-certain tokens, each of which comes a little
    more often than said (0.997 for 0.995), which adds up along a draft; the worst bin is off by
    0.08, at a standard error of 0.03."""
    found, mean = errors(of_drafts(demo_drafts(3)))
    assert len(found) == 10
    assert max(found) < 0.09
    assert mean < 0.02


@pytest.mark.slow
def test_probabilities_of_drafts_on_a_recorded_trace(shared_folder: Path) -> None:
    """Text that nothing was developed or learned on. Other traces do not all hold the 0.05:
    docs/measurements.md says which."""
    found, mean = errors(of_drafts(recorded_drafts(shared_folder, "chat_cold")))
    assert len(found) == 10
    assert max(found) < 0.05
    assert mean < 0.01
