"""Files of measured rows: what every row says, and that no file holds two kinds of rows."""

from pathlib import Path

import pytest

from reprise.eval.report.results_csv import (
    ORIGIN,
    RESULTS,
    ROOT,
    append_rows,
    command,
    read_header,
    read_rows,
)


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
