"""Near answers that come late, in a real engine of two ranks in Triton's interpreter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.request.request_info import counts_id
from reprise.tests.engine_ext.speculator.conftest import TWO_RANKS

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

LONGEST = 4
QUESTION = [(7 * j) % 250 + 5 for j in range(9)]
SAMPLINGS = [
    {"temperature": 0.0, "ignore_eos": True},
    # Of a model without sense: nothing that is said twice is said by itself.
    {"temperature": 1.0, "seed": 5, "ignore_eos": True},
]
MAX_TOKENS = 10
LATE = (1, 2, 5, 9, 10, 11, 15)
"""Steps: without drafts the answer is whole with the ninth, and the one after it ten later."""
OFF = {"drafts": False, "store": False}
NONCE = "test"
"""Of those who fetch counts."""


class Engine:
    """Two slots: one for a request without drafts, the other for all others in turn."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def ask(self, **requests: tuple[str | None, dict[str, Any], int, dict[str, Any]]) -> Any:
        """Answer requests, which begin in this order: of a tenant, or of nobody knows whom, each
        with a sampling, a length and hints."""
        prompts, samplings = [], []
        for tenant, sampling, length, hints in requests.values():
            prompts.append({"tokens": QUESTION, "cache_salt": tenant or "nobody"})
            given = {"namespace": tenant, "counts_nonce": NONCE, **hints}
            samplings.append({**sampling, "max_tokens": length, "hints": given})
        names = list(requests)
        answers = self._engine.generate_as(names=names, prompts=prompts, samplings=samplings)
        assert self._engine.report()["errors"] == {}
        return {name: answers[name]["tokens"] for name in names}

    def in_workers(self, function: str, **arguments: Any) -> Any:
        return self._engine.in_workers(function=function, **arguments)

    def counts(self, name: str) -> dict[str, dict[str, int]]:
        """Drafted and accepted tokens of a request that is over, by source."""
        kept = counts_id(NONCE, name)
        first, _ = self.in_workers("draft_counts", names=[kept])
        by_source: dict[str, dict[str, int]] = first[kept]["by_source"]
        return by_source


@pytest.fixture(scope="module")
def engine(start_engine: Callable[..., Any], model_for_two_ranks: Path) -> Engine:
    # Request ids are those that are given, so that one may come twice.
    environment = {**TWO_RANKS, "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "1"}
    made = start_engine(
        with_reprise=True,
        environment=environment,
        model=str(model_for_two_ranks),
        tensor_parallel_size=2,
        dtype="float32",
        max_num_seqs=2,
    )
    made.in_workers(function="watch_drafts")
    return Engine(made)


class Drafted:
    """What was drafted step by step, and what would have been right.

    Args:
        steps: see `drafts` in `in_worker.py`.
        answer: to the question, and longer than those of requests.
    """

    def __init__(self, steps: list[dict[str, Any]], answer: list[int]) -> None:
        self._steps = steps
        self._answer = answer

    def _of(self, name: str) -> list[Any]:
        return [step[name] for step in self._steps if name in step]

    def slots(self, name: str) -> set[int]:
        """Slots that a request had."""
        return {slot for slot, _, _ in self._of(name)}

    def are_right(self, name: str) -> list[bool]:
        """For each step of a request: its draft is what comes next."""
        return [
            draft == self._answer[num_output : num_output + LONGEST]
            for _, num_output, draft in self._of(name)
        ]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seeded"])
def test_late_answers_are_drafted_from_at_once_and_by_nobody_else(
    engine: Engine, sampling: dict[str, Any]
) -> None:
    kind = f"t{sampling['temperature']}"
    owner, other = f"{kind}-owner", f"{kind}-other"
    engine.in_workers("hold_back", late=None)
    # What the owner is told once without drafts is near to what it asks from now on.
    first = f"{kind}-first"
    answer = engine.ask(**{first: (owner, sampling, 3 * MAX_TOKENS, {"drafts": False})})[first]
    for late in LATE:
        engine.in_workers("hold_back", late=late)
        engine.in_workers("drafts")
        beside, mine, after = (f"{kind}-{late}-{name}" for name in ("beside", "mine", "after"))
        # The slot's next request is another tenant's, or nobody knows whose.
        tenant = other if late % 2 else None
        asked = {
            beside: (other, sampling, 3 * MAX_TOKENS, OFF),
            mine: (owner, sampling, MAX_TOKENS, {"store": False}),
            after: (tenant, sampling, MAX_TOKENS, {"store": False}),
        }
        answers = engine.ask(**asked)
        assert answers[mine] == answers[after] == answer[:MAX_TOKENS]
        assert answers[beside] == answer
        steps, of_other_rank = engine.in_workers("drafts")
        assert steps == of_other_rank
        drafted = Drafted(steps, answer)
        assert drafted.slots(mine) == drafted.slots(after)
        attached, _ = engine.in_workers("attached")
        is_right = drafted.are_right(mine)
        if late < MAX_TOKENS - 1:
            assert attached == [[late, mine, 1]]
            # With the step that begins when they are there.
            assert is_right == [False] * late + [True] * (len(is_right) - late)
            counts = engine.counts(mine)["near_answer"]
            assert counts["accepted"] == counts["drafted"] > 0
            assert len(is_right) < MAX_TOKENS
        elif late >= MAX_TOKENS + 1:
            assert attached == []
            assert engine.counts(mine)["near_answer"] == {"drafted": 0, "accepted": 0}
            assert not any(is_right)
            assert len(is_right) == MAX_TOKENS
        assert drafted.are_right(after) == [False] * MAX_TOKENS
        assert engine.counts(after)["near_answer"] == {"drafted": 0, "accepted": 0}


def test_what_was_found_under_an_id_is_not_drafted_under_it_again(engine: Engine) -> None:
    """What is found for a request can be read under its id for a while after it is over."""
    engine.in_workers("hold_back", late=None)
    greedy = SAMPLINGS[0]
    (answer,) = engine.ask(stored=("one", greedy, MAX_TOKENS, {"drafts": False})).values()
    for tenant in ("one", "two"):
        asked = (tenant, greedy, MAX_TOKENS, {"store": False})
        assert engine.ask(again=asked) == {"again": answer}
        accepted = engine.counts("again")["near_answer"]["accepted"]
        assert (accepted > 0) == (tenant == "one")
