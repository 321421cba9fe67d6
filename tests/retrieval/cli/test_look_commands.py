"""`reprise cache list`, `show` and `search`, over SQLite."""

import json
from pathlib import Path

import msgspec
import pytest

from reprise.retrieval import Answer
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.tests.retrieval.cli.cache_command import refused, run

QUESTIONS = ("How do I cancel my order?", "Where is my parcel?", "What does delivery cost?")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A file with an answer to each question, the last of another namespace."""
    tier = SqliteTier(tmp_path / "answers.sqlite")
    tier.put(
        [
            Answer.create(
                prompt_token_ids=[number],
                response_token_ids=[number, 7],
                prompt_text=question,
                response_text=f"Answer\n{number}",
                namespace="acme" if number == 2 else "",
                answer_id=f"id{number}",
                created_s=1000.0 + number,
                tokenizer_key="k",
            )
            for number, question in enumerate(QUESTIONS)
        ]
    )
    tier.close()
    return f"sqlite:///{tmp_path}/answers.sqlite"


def test_the_newest_come_first(url: str) -> None:
    lines = run("list", "--url", url, "--limit", "2").splitlines()
    rows = [line for line in lines if "id" in line and "Answer" in line]
    assert ["id2" in rows[0], "id1" in rows[1], len(rows)] == [True, True, 2]
    assert "acme" in rows[0]
    assert "(default)" in rows[1]
    assert lines[-1] == "2 of 3: name --limit for more"
    assert "id2" not in run("list", "--url", url, "--namespace", "")


def test_one_answer_is_shown_whole(url: str) -> None:
    shown = json.loads(run("show", "id2", "--url", url))
    assert shown["prompt"] == QUESTIONS[2]
    assert shown["response"] == "Answer\n2"
    assert (shown["namespace"], shown["tokenizer_key"]) == ("acme", "k")
    assert "3 answers have ids that begin with id" in refused("show", "id", "--url", url)
    assert "no answer whose id begins with x" in refused("show", "x", "--url", url)
    assert "show needs an id" in refused("show", "", "--url", url)
    assert "search needs a question" in refused("search", " ", "--url", url)
    assert "that UTF-8 can encode" in refused("search", "\udcff", "--url", url)


@pytest.mark.parametrize("warmed", [False, True])
def test_answers_are_found_by_a_question_as_typed(url: str, warmed: bool) -> None:
    if warmed:
        run("warm", "--url", url, "--embedding-model", "lexical")
    given = ("search", "my parcel, where is it?", "--url", url, "--embedding-model", "lexical")
    output = run(*given)
    assert ("reprise cache warm keeps it" in output) == (not warmed)
    rows = [line for line in output.splitlines() if "Answer" in line]
    assert len(rows) == 3
    assert "id1" in rows[0]
    assert len([line for line in run(*given, "--limit", "1").splitlines() if "Answer" in line]) == 1


def test_a_damaged_embedding_is_made_anew(url: str, tmp_path: Path) -> None:
    run("warm", "--url", url, "--embedding-model", "lexical")
    tier = SqliteTier(tmp_path / "answers.sqlite")
    damaged = [
        msgspec.structs.replace(answer, embedding=b"\x00\x3c" * 2)
        for answer in tier.answers("")
        if answer.answer_id == "id1"
    ]
    tier.put(damaged)
    tier.close()
    output = run("search", "Where is my parcel?", "--url", url, "--embedding-model", "lexical")
    assert "id1" in next(line for line in output.splitlines() if "Answer" in line)


def test_what_an_answer_holds_is_shown_and_not_obeyed(url: str, tmp_path: Path) -> None:
    """By a terminal, whose codes a prompt may hold, and by what prints tables."""
    tier = SqliteTier(tmp_path / "answers.sqlite")
    evil = Answer.create(
        prompt_token_ids=[1],
        response_token_ids=[2],
        prompt_text="a\x1b[31mb\x9b2Jc",
        response_text="[red]x[/red] :smile:",
        namespace="salt-[red]x",
        answer_id="evil",
    )
    tier.put([evil])
    tier.close()
    shown = run("list", "--url", url)
    assert "a\N{REPLACEMENT CHARACTER}[31mb\N{REPLACEMENT CHARACTER}2Jc" in shown
    assert "[red]x[/red] :smile:" in shown
    stats = run("stats", "--url", url)
    assert "salt-[red]x" in stats
    searched = run("search", "abc", "--url", url, "--embedding-model", "lexical")
    whole = run("show", "evil", "--url", url)
    assert json.loads(whole)["prompt"] == evil.prompt_text
    controls = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n"}
    assert not controls & set(shown + stats + searched + whole)
