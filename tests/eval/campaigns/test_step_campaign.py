"""The campaign against vLLM's step: what it asks, its complaints, and short ones."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import light_processes
import numpy as np
import pytest

from reprise.eval.campaigns.step_campaign import WAYS, Outcome, _compare, main
from reprise.eval.campaigns.step_requests import Planned, Question, draw_questions, draw_requests
from reprise.eval.report.command_line import run_command

SCRIPT = Path(__file__).resolve().parents[3] / "eval" / "campaigns" / "step_campaign.py"
TEXTS = [list(range(start, start + 150)) for start in range(40)]


def run(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=os.environ
        | {
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            **light_processes.BY_WORDS,
        },
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize("max_model_len", sorted({way.settings["max_model_len"] for way in WAYS}))
def test_questions_fit_and_many_end_where_it_hurts(max_model_len: int) -> None:
    questions = draw_questions(TEXTS, max_model_len, np.random.default_rng(1), 600)
    ends: Counter[int] = Counter()
    for question in questions:
        params = dict(question.params)
        length = len(question.prompt)
        assert 0 < length < max_model_len
        last = length + (params["max_tokens"] or max_model_len - length)
        assert length < last <= max_model_len
        assert params.get("min_tokens", 0) <= last - length
        ends[last] += 1
    assert ends[max_model_len] > 150
    assert sum(count for end, count in ends.items() if end % 32 == 0) > ends[max_model_len]
    assert len({question.kind for question in questions}) == 9


def test_a_seed_gives_the_same_requests_again() -> None:
    drawn = []
    for _ in range(2):
        random = np.random.default_rng(5)
        questions = draw_questions(TEXTS, 96, random, 50)
        drawn.append(draw_requests(questions, random, 200))
    assert drawn[0] == drawn[1]
    assert any(planned.abort_after is not None for planned in drawn[0])
    assert len({planned.priority for planned in drawn[0]}) == 4


def test_a_wrong_token_is_told_with_its_question() -> None:
    planned = Planned(Question((1, 2), "last block", (("max_tokens", 3),)), 0, None)
    outcome = Outcome()
    _compare(((7, 8), "length"), ((7, 8), "length"), planned, outcome)
    assert outcome.is_good
    _compare(((7, 9), "length"), ((7, 8), "length"), planned, outcome)
    assert not outcome.is_good
    assert "last block, prompt of 2" in outcome.wrong[0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--way", "9"], "--way: expected 0 to 3, got 9"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--trace", "/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
    ],
)
def test_what_makes_no_sense_is_named(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, arguments, name="step_campaign.py") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step_campaign.py: error: ")
    assert complaint in line


COMPLAINT = """
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.eval.campaigns.step_campaign import Outcome, _complaints

outcome = Outcome()
with _complaints(outcome):
    ErrorCounter().record("a place", ValueError("injected"))
print(outcome.errors[0])
"""


def test_an_error_that_is_only_logged_is_found() -> None:
    """As of an engine core: its counts are in no worker's report."""
    log = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    command = [sys.executable, "-c", COMPLAINT]
    done = subprocess.run(
        command, env=os.environ | log, capture_output=True, text=True, timeout=300
    )
    assert "Reprise: a place failed (ValueError: injected)" in done.stdout, done.stderr


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_short_campaign_finds_nothing(demo_model: Path) -> None:
    """Against the engine that tests/engine_ext/compat/test_step_faults.py leaves out."""
    done = run(
        *("--requests", "150", "--seeds", "2", "--way", "1", "--model", str(demo_model)),
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "abort" in done.stdout
