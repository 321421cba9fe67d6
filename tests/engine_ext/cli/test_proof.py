"""`reprise doctor --prove`: what it concludes, a whole run with a real model, and its end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import light_processes
import psutil
import pytest
from warm_starts import run_program

from reprise.engine_ext.cli import proof
from reprise.engine_ext.cli.answer_difference import Gap
from reprise.engine_ext.cli.proof import (
    ASKED,
    LEARNED,
    Parting,
    Proof,
    ProofError,
    recommendation,
    report_lines,
)
from reprise.engine_ext.cli.proof_worker import ProofOutcome

TIE = Gap((15.95, 15.9), 15.95)


def outcome(took_s: float, dtype: str = "bfloat16", **drafts: int) -> ProofOutcome:
    return ProofOutcome(
        prompts=[[1, 2]] * 2, answers=[[3] * 10] * 2, took_s=took_s, dtype=dtype, **drafts
    )


def of(took_s: float, *gaps: Gap, dtype: str = "bfloat16") -> Proof:
    """A proof in which drafts take so long, and no drafts 1 s."""
    partings = [Parting(2, 4, each) for each in gaps]
    drafted = outcome(took_s, dtype, drafted=40, accepted=10)
    return Proof(drafted, outcome(1.0, dtype), partings)


def test_twenty_questions_that_resemble_others() -> None:
    assert len(set(ASKED)) == len(set(LEARNED)) == 20
    assert not set(ASKED) & set(LEARNED)


@pytest.mark.parametrize(
    ("found", "says", "says_not"),
    [
        (of(0.5), "serve with drafts: 2.00 times", "tie"),
        (of(1.0), "no difference in speed", "serve with"),
        (of(2.0), "REPRISE_FEATURES__DRAFTS=false", "tie"),
        (of(0.5, TIE), "nearly tie", "report"),
        (of(0.5, Gap((16.0, 15.0), 16.0)), "Please report", "serve with drafts:"),
        # A third token is as good, and each engine has taken another one.
        (of(0.5, Gap((15.95, 15.9), 15.97)), "nearly tie", "report"),
        (of(0.5, Gap((15.95, 15.9), 17.0)), "Please report", "serve with drafts:"),
        (of(0.5, TIE, dtype="float32"), "Please report", "serve with drafts:"),
        (of(0.5, Gap((15.95, 15.9499), 15.95), dtype="float32"), "nearly tie", "report"),
        (of(0.5, Gap((15.95, 15.85), 15.95), dtype="float16"), "Please report", "nearly"),
        (of(0.5, Gap((0.0, 0.0), 0.0)), "nearly tie", "report"),
    ],
)  # fmt: skip
def test_what_it_recommends(found: Proof, says: str, says_not: str) -> None:
    said = recommendation(found)
    assert says in said
    assert says_not not in said
    assert said.endswith(".")


def test_the_lines_say_all_that_was_seen() -> None:
    lines = list(report_lines(of(0.5, TIE)))
    assert lines[0] == "with drafts:    2 answers of 20 tokens, one at a time, 40.0 tokens/s"
    assert lines[1] == "without drafts: 2 answers of 20 tokens, one at a time, 20.0 tokens/s"
    assert lines[2].endswith("40 tokens, of which 25% accepted")
    assert lines[3].endswith("1 of 2")
    assert "question 2 differs from token 4 on; logits of the two tokens 15.9500 and" in lines[4]
    assert lines[4].endswith("15.9000, the best 15.9500, in bfloat16")
    assert lines[5].startswith("recommendation: ")


def test_without_drafts_it_is_vllm_as_it_comes() -> None:
    given = {"VLLM_PLUGINS": "reprise,another"}
    assert proof._environment(given, with_drafts=False)["VLLM_PLUGINS"] == "another"
    assert proof._environment(given, with_drafts=True)["VLLM_PLUGINS"] == "another,reprise"


PROGRAM = "from reprise.engine_ext.cli.cli import main; main()"
COMMAND = ["-c", PROGRAM, "doctor", "--prove"]
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]


@pytest.fixture
def environment() -> dict[str, str]:
    return {
        **os.environ,
        **light_processes.BY_WORDS,
        "REPRISE_DRAFTS__VERIFY_COST": "0.02",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_PLUGINS": "reprise",
    }


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_with_a_real_model(demo_model: Path, environment: dict[str, str]) -> None:
    done = run_program([*COMMAND, str(demo_model), *OPTIONS], environment=environment)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert lines["identical"].strip() == "20 of 20"
    assert lines["with drafts"].strip().startswith("20 answers of ")
    drafted, _, share = lines["drafts"].strip().partition(" tokens, of which ")
    assert int(drafted) > 100
    assert int(share.partition("%")[0]) > 20
    assert done.stdout.splitlines()[-1].startswith("recommendation: ")
    for progress in ("with drafts: 40 of 40 answers", "without drafts: 5 of 40 answers"):
        assert progress in done.stderr


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_a_model_that_cannot_be_served_is_one_line(demo_model: Path) -> None:
    with pytest.raises(ProofError, match="does not take these options: --no-such-option"):
        proof.prove(str(demo_model), ["--no-such-option"], lambda _: None)


def waited_for(process: subprocess.Popen[str], line: str) -> Iterator[str]:
    assert process.stderr is not None
    for said in process.stderr:
        yield said
        if line in said:
            return


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_sigterm_ends_all_that_it_has_started(
    demo_model: Path, environment: dict[str, str]
) -> None:
    process = subprocess.Popen(
        [sys.executable, *COMMAND, str(demo_model), *OPTIONS],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = list(waited_for(process, "with drafts: 5 of 40"))
    assert process.poll() is None, said
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 2, "no engine runs: the test could not fail"
    began_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []
    assert time.monotonic() - began_s < 60  # 4 s on a machine with nothing else to do
    assert process.stderr is not None
    process.stderr.close()
