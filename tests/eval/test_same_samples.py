"""Which requests the comparison of seeded samples makes, and how it counts."""

from collections import Counter

import pytest

from reprise.eval.live.sampled_worker import SampledOutcome
from reprise.eval.report.results_csv import RESULTS, read_header
from reprise.eval.same_samples import FIELDS, LIMITS, TEMPERATURES, Kind, main, requests_of, rows_of


def test_seeded_requests_are_of_all_kinds_beside_others() -> None:
    asked = requests_of(200, 40)
    kinds = Counter(one.kind for one in asked if one.kind is not None)
    assert kinds.total() == 200
    assert len(kinds) == len(TEMPERATURES) * len(LIMITS)
    assert min(kinds.values()) == 13
    others = [one.sampling for one in asked if one.kind is None]
    assert {one["temperature"] for one in others} == {0.0, 0.9}
    assert not any("seed" in one for one in others)
    seeds = [one.sampling["seed"] for one in asked if one.kind is not None]
    assert len(set(seeds)) == 200
    # Any eight neighbours: a batch has seeded ones and others.
    for first in range(len(asked) - 8):
        assert {one.kind is None for one in asked[first : first + 8]} == {True, False}


def outcome(*answers: list[list[int]], drafted: int = 0) -> SampledOutcome:
    counts = [drafted] * len(answers)
    return SampledOutcome(answers=list(answers), drafted=counts, accepted=counts, runner="v1")


def test_only_seeded_answers_are_compared() -> None:
    asked = requests_of(6, 40)
    assert [one.kind is None for one in asked] == [False] * 5 + [True, False]
    plain = [[n] * 3 for n in range(len(asked))]
    changed = [*plain[:3], [3, 3, 9], plain[4], [7], plain[6]]  # a seeded one and another
    rows = list(rows_of(asked, outcome(plain, plain), outcome(plain, changed, drafted=5)))
    totals = [row for row in rows if row["temperature"] == "all"]
    assert [(row["answers"], row["differing"], row["requests"]) for row in totals] == [
        ("plain vLLM, again", 0, 6),
        ("with drafts", 0, 6),
        ("with drafts, repeated", 1, 6),
    ]
    assert [row.get("drafted") for row in totals] == [None, 5, 5]
    assert totals[0]["tokens"] == 18
    differing = [row for row in rows if row["differing"] and row["temperature"] != "all"]
    assert asked[3].kind is not None
    assert [Kind(row["temperature"], row["limits"]) for row in differing] == [asked[3].kind]
    assert {name for row in rows for name in row} <= set(FIELDS)
    assert read_header(RESULTS / "same_samples.csv")[5:] == list(FIELDS)


@pytest.mark.slow
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "/no/such/model", "--quiet"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
