"""The replay's arithmetic, worked out by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from reprise.eval.replay.near_lookup import NearLookup
from reprise.eval.replay.peer_drafters import NoDrafter
from reprise.eval.replay.replay import ReplayCounts, accepted_length, replay, replay_request
from reprise.eval.replay.results import run_of_counts
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.eval.replay.traces import TraceRow
from reprise.retrieval.search.embedding import Embedder


def ids(*tokens: int) -> IntArray:
    return np.array(tokens, np.int32)


def row(
    response: Sequence[int],
    *,
    name: str = "r",
    warm: bool = False,
    cached: Sequence[int] | None = None,
) -> TokenRow:
    return TokenRow(
        request_id=name,
        prompt_token_ids=ids(1, 2, 3),
        response_token_ids=ids(*response),
        cached_token_ids=None if cached is None else ids(*cached),
        source=TraceRow(prompt="p", response="r", warm=warm),
    )


class ScriptedDrafter(NoDrafter):
    """Drafts what it is told to, and notes what happens to it."""

    def __init__(self, *drafts: Sequence[int]) -> None:
        self.drafts = list(drafts)
        self.calls: list[object] = []

    def add(self, row: TokenRow, answer_token_ids: IntArray) -> None:
        self.calls.append(("add", row.request_id, answer_token_ids.tolist()))

    def look_up(self, row: TokenRow) -> None:
        self.calls.append(("look_up", row.request_id))

    def start(self, row: TokenRow) -> None:
        self.calls.append(("start", row.request_id))

    def propose(self) -> Sequence[int]:
        return self.drafts.pop(0) if self.drafts else ()

    def observe(self, token_ids: IntArray) -> None:
        self.calls.append(token_ids.tolist())

    def finish(self, row: TokenRow, *, joins: bool) -> None:
        self.calls.append(("finish", row.request_id, joins))


@pytest.mark.parametrize(
    ("draft", "target", "length"),
    [
        ((), (1, 2), 0),
        ((1, 2), (1, 2, 3), 2),
        ((1, 9, 3), (1, 2, 3), 1),
        ((9, 2), (1, 2), 0),
        ((1, 2, 3, 4), (1, 2), 2),
        ((1,), (), 0),
    ],
)
def test_accepted_length(draft: Sequence[int], target: Sequence[int], length: int) -> None:
    assert accepted_length(draft, ids(*target)) == length


def test_without_drafts_every_token_but_the_first_is_a_step() -> None:
    counts = ReplayCounts()
    replay_request(NoDrafter(), row([5, 6, 7, 8]), counts)
    assert (counts.requests, counts.steps, counts.emitted_tokens) == (1, 3, 3)
    assert (counts.drafted_tokens, counts.accepted_tokens) == (0, 0)
    assert counts.model_speedup(0.5) == 1.0


def test_a_worked_case() -> None:
    # 10 comes from the prefill. Step 1 accepts 11, 12 of three and adds 13. Step 2 has no draft
    # and emits 14. Step 3 accepts nothing of two and emits 15. Step 4 accepts 16 and adds 17.
    drafter = ScriptedDrafter((11, 12, 99), (), (98, 97), (16,))
    counts = ReplayCounts()
    replay_request(drafter, row([10, 11, 12, 13, 14, 15, 16, 17]), counts)
    assert counts.steps == 4
    assert counts.emitted_tokens == 7
    assert counts.drafted_tokens == 6
    assert counts.accepted_tokens == 3
    assert drafter.calls == [("start", "r"), [10], [11, 12, 13], [14], [15], [16, 17]]
    assert counts.model_speedup(0.1) == pytest.approx(7 / (4 + 0.6))
    run = run_of_counts("t", "m", counts, cost=0.1)
    assert run.mean_acceptance_length == pytest.approx(1.75)
    assert run.acceptance_rate == pytest.approx(0.5)
    assert run.drafted_per_step == pytest.approx(1.5)


def test_a_draft_over_the_end_has_no_bonus_token() -> None:
    drafter = ScriptedDrafter((11, 12, 13, 14))
    counts = ReplayCounts()
    replay_request(drafter, row([10, 11, 12]), counts)
    assert (counts.steps, counts.emitted_tokens, counts.accepted_tokens) == (1, 2, 2)
    assert counts.drafted_tokens == 4


def test_an_answer_of_one_token_takes_no_step() -> None:
    counts = ReplayCounts()
    replay_request(ScriptedDrafter((1,)), row([0]), counts)
    assert (counts.requests, counts.steps) == (1, 0)
    assert counts.model_speedup(0.02) is None
    run = run_of_counts("t", "m", counts, cost=0.02)
    assert run.mean_acceptance_length is None
    assert run.acceptance_rate is None
    assert run.propose_us is None


def test_the_bound_cuts_drafts() -> None:
    counts = ReplayCounts()
    replay_request(
        ScriptedDrafter((11, 12, 13)), row([10, 11, 12, 13]), counts, num_speculative_tokens=2
    )
    assert (counts.drafted_tokens, counts.accepted_tokens, counts.steps) == (2, 2, 1)


def test_the_cache_is_filled_before_and_grows_as_it_goes() -> None:
    drafter = ScriptedDrafter()
    rows = [
        row([4], name="a"),
        row([5], name="b", warm=True),
        row([6], name="c", cached=[7, 8]),
    ]
    replay(drafter, rows)
    assert drafter.calls == [
        ("add", "b", [5]),
        ("add", "c", [7, 8]),
        *(("look_up", "a"), ("start", "a"), [4], ("finish", "a", True)),
        # Its cache stands for an earlier time, so that its answer does not join.
        *(("look_up", "c"), ("start", "c"), [6], ("finish", "c", False)),
    ]


def test_a_search_that_fails_is_not_one_that_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder("lexical")
    lookup = NearLookup(embedder=embedder, clauses=False)
    try:
        lookup.add(row([5, 6], name="one"), ids(5, 6))
        _, (near,) = lookup.look_up(row([5, 6], name="two"))
        assert near.similarity > 0.9

        def fail(_: Sequence[str]) -> None:
            raise OSError("the model's file is gone")

        monkeypatch.setattr(embedder, "encode", fail)
        with pytest.raises(RuntimeError, match=r"retrieval failed: .*errors=1"):
            lookup.look_up(row([5, 6], name="three"))
    finally:
        lookup.close()
