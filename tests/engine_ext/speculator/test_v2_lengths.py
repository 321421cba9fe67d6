"""A real engine on model runner V2, in Triton's interpreter, whose drafts change their length."""

from collections.abc import Callable
from typing import Any

import pytest

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

LONGEST = 4
MOST_ROUNDS = 6
"""What steps cost is measured while they run: where others run as well, it takes a while."""
GREEDY = {"temperature": 0.0, "max_tokens": 32, "ignore_eos": True}
SEEDED = {**GREEDY, "temperature": 0.8, "seed": 5}
PROMPTS = [[(7 * i + 3 * j) % 250 + 5 for j in range(6 + i % 3)] for i in range(10)]


class Counts:
    """What vLLM has counted since the last look."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._before: dict[str, float] = {}

    def take(self) -> tuple[float, float, float]:
        """Steps with drafts, as a share of all; tokens of the average draft; right tokens, as a
        share of those drafted."""
        now = self._engine.metrics()
        drafts, drafted, accepted, emitted = (
            now.get(name, 0.0) - self._before.get(name, 0.0)
            for name in (
                "vllm:spec_decode_num_drafts",
                "vllm:spec_decode_num_draft_tokens",
                "vllm:spec_decode_num_accepted_tokens",
                "vllm:generation_tokens",
            )
        )
        self._before = now
        # The first token of a request comes with its prompt.
        steps = emitted - accepted - len(PROMPTS)
        assert drafts
        return drafts / steps, drafted / drafts, accepted / drafted


def test_no_answer_changes_while_lengths_do(start_engine: Callable[..., Any]) -> None:
    plain = start_engine(with_reprise=False)
    samplings = [GREEDY, SEEDED]
    expected = plain.generate(prompts=PROMPTS, samplings=samplings)
    plain.end()
    ours = start_engine(
        with_reprise=True,
        speculative_config={"model": PROPOSER_PATH, "num_speculative_tokens": LONGEST},
    )
    counts = Counts(ours)
    found = []
    for _ in range(MOST_ROUNDS):
        assert ours.generate(prompts=PROMPTS, samplings=samplings) == expected
        assert ours.report()["errors"] == {}
        found.append(counts.take())
        if len(found) > 1 and found[-1][0] > 0.5 and found[-1][1] * found[-1][2] > 1.5:
            break
    ours.end()
    # At first some steps have drafts, and some have none or short ones. What is repeated is drafted
    # for, and how much depends on what steps cost here, where others may run as well.
    assert found[0][0] > 0, found
    assert found[0][0] * found[0][1] < LONGEST, found
    assert max(share for share, _, _ in found) > 0.2, found
    assert max(length * right for _, length, right in found) > 1.0, found
