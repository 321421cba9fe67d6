"""The page of benchmarks says what the rows in eval/results say."""

from pathlib import Path

import pytest

from reprise.eval.report import benchmarks_page
from reprise.eval.report.benchmark_tables import cell
from reprise.eval.report.benchmarks_page import PAGE, SECTIONS, main, render_page
from reprise.eval.report.results_csv import RESULTS, append_rows, read_header

STEP = next(section for section in SECTIONS if section.where == {"bench": "step"})


def test_the_page_is_what_the_rows_say() -> None:
    """If not: `python eval/report/benchmarks_page.py`."""
    assert PAGE.read_text(encoding="utf-8") == render_page()


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_sections_read_columns_that_are_there(section: benchmarks_page.Section) -> None:
    header = read_header(RESULTS / section.file)
    assert {*section.keys, *section.where} <= set(header)
    row = dict.fromkeys(header, "1") | {"machine": "m"}
    head, *cells = section.table([row])
    assert cells
    assert all(len(one) == len(head) for one in cells)


def test_the_newest_row_counts_and_machines_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks_page, "RESULTS", tmp_path)
    fields = read_header(RESULTS / STEP.file)[5:]
    step = {"bench": "step", "batch": 8, "context": 200}
    for method, time_us, machine in (
        ("reprise", 70.0, "one; AVX2"),
        ("suffix", 20.0, "one; AVX2"),
        ("reprise", 60.0, "one; AVX2"),
        ("reprise", 50.0, "two; AMX"),
    ):
        row = step | {"method": method, "us_per_request_p50": time_us, "machine": machine}
        append_rows(tmp_path / STEP.file, [row], fields=fields)
    append_rows(tmp_path / STEP.file, [{"bench": "corpus", "machine": "3"}], fields=fields)
    _, about_one, table_one, about_two, table_two = STEP.render()
    assert about_one.startswith("**one; AVX2**, 20")
    assert table_one.splitlines()[2:] == ["| 8 | 200 | 60.0 |  | 20.0 |  |  |"]
    assert about_two.startswith("**two; AMX**, 20")
    assert table_two.splitlines()[2:] == ["| 8 | 200 | 50.0 |  |  |  |  |"]


def test_a_page_that_differs_is_told(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    assert main(output=page, check=True) == 1
    assert main(output=page) == 0
    assert main(output=page, check=True) == 0
    page.write_text(page.read_text() + "More.\n")
    assert main(output=page, check=True) == 1


def test_a_column_that_is_not_there_is_no_empty_cell() -> None:
    rows = {"none": {"tokens_per_s": "3"}}
    assert cell(rows, "none", "tokens_per_s") == "3"
    assert cell(rows, "suffix", "tokens_per_s") == ""
    with pytest.raises(KeyError, match="tokens_a_second"):
        cell(rows, "none", "tokens_a_second")
