"""Files of measured rows: what every row says, and that no file holds two kinds of rows."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from reprise.eval.report.command_line import InputError
from reprise.eval.report.results_csv import (
    ORIGIN,
    RESULTS,
    ROOT,
    append_rows,
    check_rows_fit,
    command,
    commit,
    read_header,
    read_rows,
)
from reprise.eval.report.runs_csv import model_name


def test_rows_say_what_they_were_measured_on_and_how(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.csv"
    for value in (1, 2):
        append_rows(path, [{"value": value}], fields=("value", "note"))
    assert read_header(path) == [*ORIGIN, "value", "note"]
    rows = read_rows(path)
    assert [row["value"] for row in rows] == ["1", "2"]
    assert all(rows[0][name] for name in ORIGIN)
    append_rows(path, [{"value": 3, "machine": "NVIDIA H200"}], fields=("value", "note"))
    assert read_rows(path)[-1]["machine"] == "NVIDIA H200"


def test_rows_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    append_rows(path, [{"value": 1}], fields=("value",))
    with pytest.raises(ValueError, match=r"expected columns .*'other'\], found .*'value'\]"):
        append_rows(path, [{"other": 1}], fields=("other",))
    with pytest.raises(ValueError, match="'stray'"):
        append_rows(path, [{"stray": 1}], fields=("value",))


def test_that_rows_will_not_fit_is_known_before_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    check_rows_fit(path, fields=("value",))
    assert not path.exists()
    path.touch()  # as `mktemp` does
    append_rows(path, [{"value": 1}], fields=("value",))
    check_rows_fit(path, fields=("value",))
    assert [row["value"] for row in read_rows(path)] == ["1"]
    with pytest.raises(InputError, match="expected columns"):
        check_rows_fit(path, fields=("other",))
    with pytest.raises(InputError, match="cannot be written to"):
        check_rows_fit(tmp_path, fields=("value",))


def test_rows_name_the_commit_that_was_there_when_the_work_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = iter(["before", "", "after", ""])  # the commit, and what has been changed
    commit.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=next(heads)))
    check_rows_fit(tmp_path / "a.csv", fields=("value",))
    append_rows(tmp_path / "a.csv", [{"value": 1}], fields=("value",))
    commit.cache_clear()
    assert read_rows(tmp_path / "a.csv")[0]["commit"] == "before"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"),
        ("models/SmolLM2-1.7B/", "SmolLM2-1.7B"),
        ("models/SmolLM2-1.7B/tokenizer.json", "SmolLM2-1.7B"),
        ("tokenizers/gpt2.json", "gpt2"),
        ("models/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
    ],
)
def test_models_keep_the_dots_of_their_names(given: str, name: str) -> None:
    assert model_name(given) == name


def test_commands_are_given_as_from_the_root_and_without_folders_of_this_machine() -> None:
    script = str(ROOT / "eval" / "benchmarks" / "bench_drafts.py")
    given = command([script, "--only", "step", "--trace", "/home/me/a b.jsonl"])
    assert given == "python eval/benchmarks/bench_drafts.py --only step --trace 'a b.jsonl'"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.name)
def test_every_kept_row_names_its_machine(path: Path) -> None:
    assert read_header(path)[: len(ORIGIN)] == list(ORIGIN)
    for row in read_rows(path):
        assert row["time"]
        assert row["commit"]
        assert row["command"].startswith("python eval/")
        assert row["machine"] not in ("", "cpu", "x86_64")
