"""`reprise cache invalidate`: what each condition removes."""

import re
import sqlite3

import msgspec
import pytest

from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.tests.retrieval.cli.cache_command import (
    answer,
    refused,
    run,
)


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        (["--id", "id1"], {"id2", "id3"}),
        (["--id", "id"], {"id1", "id2", "id3"}),
        (["--namespace", "acme"], {"id3"}),
        (["--prompt", " question 2 "], {"id1", "id3"}),
        (["--older-than", "1h"], {"id2", "id3"}),
        (["--older-than", "1h", "--namespace", "zeta"], {"id1", "id2", "id3"}),
    ],
)
def test_invalidate_removes_what_meets_all_conditions(url, fill, tmp_path, conditions, left):
    fill(answer(1, created_s=1.0), answer(2), answer(3, namespace="zeta"))
    output = run("invalidate", "--url", url, *conditions)
    assert re.match(rf"{3 - len(left)} answers? removed", output)
    assert ("--id takes a whole id" in output) == (conditions == ["--id", "id"])
    tier = SqliteTier(tmp_path / "answers.sqlite")
    assert {a.answer_id for name in tier.namespaces() for a in tier.answers(name)} == left
    tier.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--older-than", "-5s"], "an age must look like"),
        (["--older-than", "5"], "an age must look like"),
        (["--prompt", ""], "prompt must not be empty"),
        (["--prompt", "  "], "prompt must not be empty"),
        (["--id", ""], "answer_id must not be empty"),
        (["--tenant", ""], "tenant must not be empty"),
        (["--namespace", "acme", "--tenant", "acme"], "exclude each other"),
        (["--everything", "--id", "id1"], "no other condition"),
        (["--namespace", "a/b"], "must not contain"),
    ],
)
def test_a_condition_that_makes_no_sense_removes_nothing(url, fill, options, message):
    fill(answer(1), answer(2, namespace=""))
    assert message in refused("invalidate", "--url", url, *options)
    assert "2 answers readable" in run("check", "--url", url)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--older-than", "0s"], 0),
        (["--everything"], 0),
        (["--older-than", "1h"], 2),
        (["--namespace", ""], 2),  # the default one
        (["--prompt", "question 2"], 2),
        (["--prompt", " question 1 "], 1),
        (["--model-key", "none"], 3),
        (["--tenant", "acme"], 2),
        (["--tenant", "acm"], 3),
    ],
)
def test_each_condition_removes_what_it_says(url, fill, options, left):
    fill(
        answer(1),
        answer(2, namespace=""),
        msgspec.structs.replace(answer(1, created_s=1.0), namespace="zeta", answer_id="old"),
    )
    told = run("invalidate", "--url", url, *options)
    assert told.startswith(f"{3 - left} answer")
    assert f"{left} answer" in run("check", "--url", url)


def test_a_prompt_is_found_in_answers_without_text_by_their_tokens(url, fill, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"cancel": 1, "my": 2, "?": 3}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    fill(*(msgspec.structs.replace(answer(n), prompt_text="") for n in (1, 2)))
    told = run("invalidate", "--url", url, "--prompt", "cancel")
    assert told.splitlines() == [
        "0 answers removed",
        "2 answers without text not compared: name --tokenizer",
    ]
    by_tokens = ("--prompt", "cancel", "--tokenizer", tmp_path / "tokenizer.json")
    assert run("invalidate", "--url", url, *by_tokens).splitlines() == ["1 answer removed"]


def test_what_cannot_be_read_is_removed_where_its_namespace_says_enough(url, fill, tmp_path):
    fill(answer(1), answer(2))
    db = sqlite3.connect(tmp_path / "answers.sqlite")
    db.execute("update answers set record = x'00ff' where answer_id = 'id1'")
    db.commit()
    db.close()
    assert "1 damaged not compared" in run("invalidate", "--url", url, "--older-than", "1h")
    assert run("invalidate", "--url", url, "--namespace", "acme").startswith("2 answers removed")
    assert "0 answers readable, 0 damaged" in run("check", "--url", url)
