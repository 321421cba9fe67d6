"""vLLM's adaptive verification with our chances, in a real engine in Triton's interpreter.

It runs without the graphs that vLLM wants for it, and with costs that are given (`v2_on_cpu`): what
decides how much of a draft is verified, and all that follows from it, is vLLM's own.
"""

from collections.abc import Callable
from itertools import accumulate
from operator import mul
from typing import Any

import pytest

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

LONGEST = 4
GREEDY = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True}
SEEDED = {**GREEDY, "temperature": 0.8, "seed": 5, "logprobs": 1}
WANTED = {"regex": "(yes|no|perhaps), [a-z]{4} [0-9]{3}"}
STRUCTURED = {"temperature": 0.0, "max_tokens": 20, "structured_outputs": WANTED}
SAMPLINGS = [GREEDY, SEEDED, {**SEEDED, "seed": 6}, STRUCTURED]
MAX_STEP_TOKENS = 24
PROMPTS = [[(7 * i + 3 * j) % 250 + 5 for j in range(6 + 9 * i)] for i in range(8)]
"""The longest do not fit a step."""
OFF = {"hints": {"namespace": "", "drafts": False, "store": False}}


class Step:
    """What was verified of a step's drafts, see `verified_steps`."""

    def __init__(self, **decided: Any) -> None:
        self.requests: list[str] = decided["requests"]
        self.scheduled: list[int] = decided["scheduled"]
        self.admitted: list[int] = decided["admitted"]
        self.budget: int = decided["budget"]
        self.expected: list[list[float]] = decided["expected"]
        self.chances: list[list[float]] = decided["chances"]

    def check(self) -> None:
        """As many tokens are verified as were found to pay, and those that are likeliest right."""
        assert sum(self.admitted) == self.budget
        kept, left = [1.0], [0.0]
        for chances, scheduled, admitted in zip(
            self.chances, self.scheduled, self.admitted, strict=True
        ):
            assert all(0.0 <= chance <= 1.0 for chance in chances)
            assert 0 <= admitted <= scheduled <= LONGEST
            survival = list(accumulate(chances[:scheduled], mul))
            kept += survival[:admitted]
            left += survival[admitted:]
        assert min(kept) >= max(left) - 1e-6

    def is_trimmed(self) -> bool:
        """Some of its drafted tokens are verified, and some are not."""
        return 0 < self.budget < sum(self.scheduled)


def firsts(steps: list[Step]) -> dict[str, list[float]]:
    """By request: the chances by which it was decided how much of its first draft is verified."""
    found: dict[str, list[float]] = {}
    for step in steps:
        for request, scheduled, expected in zip(
            step.requests, step.scheduled, step.expected, strict=True
        ):
            if scheduled:
                found.setdefault(request, expected)
    return found


def test_as_much_is_verified_as_pays_and_no_answer_changes(
    start_engine: Callable[..., Any],
) -> None:
    adaptive = {"enable_adaptive_verification": True, "num_speculative_tokens": LONGEST}
    engine = start_engine(
        with_reprise=True,
        # Inductor wants a driver that can compile.
        environment={"V2_ON_CPU": "adaptive", "TORCH_COMPILE_DISABLE": "1"},
        speculative_config={"model": PROPOSER_PATH, **adaptive},
        max_num_batched_tokens=MAX_STEP_TOKENS,
        enable_prefix_caching=False,
    )
    engine.in_workers(function="watch_verification")

    def ask(samplings: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Step]]:
        answers = engine.generate(prompts=PROMPTS, samplings=samplings)
        (steps,) = engine.in_workers(function="verified_steps")
        return answers, [Step(**step) for step in steps]

    expected, steps = ask([{**sampling, **OFF} for sampling in SAMPLINGS])
    assert steps == []
    # The second time two of eight have no drafts, beside others that have.
    without = [*SAMPLINGS[:2], {**SAMPLINGS[2], **OFF}, SAMPLINGS[3]]
    seen = []
    for samplings in (SAMPLINGS, without, SAMPLINGS):
        answers, steps = ask(samplings)
        assert answers == expected
        drafted = {r for s in steps for r, n in zip(s.requests, s.scheduled, strict=True) if n}
        assert len(drafted) == (6 if samplings is without else 8)
        report = engine.report()
        assert report["errors"] == {}
        seen += steps
    engine.end()
    for step in seen:
        step.check()
    assert any(step.is_trimmed() for step in seen)
    assert any(step.budget == sum(step.scheduled) for step in seen)
    assert report["verification"]["fallen_through"] == {}
    counts = report["provider"]
    assert counts["accepted"] > 8 * GREEDY["max_tokens"] / 2
    assert counts["drafted"] <= sum(step.budget for step in seen)
    # What is not known yet is thought to be right, also of prompts that take several steps.
    assert set(map(tuple, firsts(seen).values())) == {(1.0,) * LONGEST}
