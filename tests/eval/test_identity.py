"""What the identity study compares with what, and how it counts."""

from pathlib import Path

import pytest

from reprise.engine_ext.cli.answer_difference import Difference, Gap
from reprise.eval.identity import FIELDS, Pass, cells, check_drafted, compare, main, pairs
from reprise.eval.live.engine_turns import LiveError
from reprise.eval.live.live_worker import NO_DRAFTS
from reprise.eval.report.results_csv import RESULTS, read_header

PROMPTS = [[1, 2], [3]]


def test_none_is_compared_with_itself_and_the_others_with_none() -> None:
    assert list(pairs(["none", "reprise"], [8, 1])) == [
        (Pass("none", 1), Pass("none", 8)),
        (Pass("reprise", 8), Pass("none", 8)),
        (Pass("reprise", 1), Pass("none", 1)),
    ]


def test_reprise_is_compared_with_itself_without_drafts() -> None:
    compared = list(pairs(["none", NO_DRAFTS, "reprise"], [8, 1]))
    assert (Pass(NO_DRAFTS, 1), Pass(NO_DRAFTS, 8)) in compared
    assert compared[-2:] == [
        (Pass("reprise", 8), Pass(NO_DRAFTS, 8)),
        (Pass("reprise", 1), Pass(NO_DRAFTS, 1)),
    ]


def test_tokens_count_up_to_the_first_difference() -> None:
    one, other = Pass("reprise", 8), Pass("none", 8)
    answers = {one: [[5, 6, 7], [8, 9, 9, 9]], other: [[5, 6, 7], [8, 4, 4]]}
    compared = compare(PROMPTS, answers, one, other)
    assert compared.differences == [Difference([3, 8], (9, 4))]
    assert (compared.requests, compared.tokens) == (2, 5)
    row = cells(compared, [Gap((15.95, 15.9), best=15.95)])
    assert (row["differing"], row["ties"], row["widest_steps"]) == (1, 1, 0.8)
    assert row["per_1000_tokens"] == 200
    assert set(FIELDS) - set(row) == {"model", "dtype"}
    assert read_header(RESULTS / "identity.csv")[5:] == list(FIELDS)


def test_answers_that_are_the_same() -> None:
    one, other = Pass("none", 1), Pass("none", 8)
    compared = compare(PROMPTS, {one: [[5], [6]], other: [[5], [6]]}, one, other)
    row = cells(compared, [])
    assert (row["differing"], row["tokens"], row["widest_steps"]) == (0, 2, "")


def test_engines_draft_as_their_names_say(capsys: pytest.CaptureFixture[str]) -> None:
    for method, num_drafted in (("none", 0), (NO_DRAFTS, 0), ("reprise", 3)):
        check_drafted(method, num_drafted)
    assert capsys.readouterr().err == ""
    check_drafted("reprise", 0)
    assert "reprise drafted nothing" in capsys.readouterr().err
    with pytest.raises(LiveError, match="drafted 3 tokens"):
        check_drafted(NO_DRAFTS, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "none,medusa"], "unknown 'medusa'; there are none, ngram, suffix, "),
        (["--at-once", "1,8"], "expected the largest number first"),
        (["--at-once", "many"], "expected whole numbers from 1 on with commas between, got 'many'"),
        (["--trace", "no/such/file"], "no/such/file"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--model", str(Path("/no/such/model"))]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
