"""The command of virtual time: what it prints, writes and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reprise.eval.benchmarks import bench_virtual_gpu
from reprise.eval.report.command_line import run_command
from reprise.eval.report.results_csv import read_rows

NAME = "bench_virtual_gpu.py"


@pytest.mark.slow
def test_a_forecast_is_printed_and_written(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "rows.csv"
    arguments = ["--limit", "12", "--concurrency", "1,4", "--engines", "v1,v2", "--csv", str(file)]
    assert run_command(bench_virtual_gpu.main, arguments, name=NAME) == 0
    said = capsys.readouterr()
    assert "requests to time" not in said.err
    rows = read_rows(file)
    assert [(row["engine"], row["concurrency"]) for row in rows] == [
        (engine, number) for number in ("1", "4") for engine in ("none", "v1", "v2")
    ]
    assert {row["machine"] for row in rows} == {bench_virtual_gpu.MACHINE}
    assert {row["requests"] for row in rows} == {"12"}
    assert [float(row["to_none"]) for row in rows if row["engine"] == "none"] == [1.0, 1.0]
    assert all(float(row["to_none"]) > 1.3 for row in rows if row["engine"] == "v2")
    printed = said.out
    assert "no figure of a device" in printed
    assert all(row["to_none"] in printed for row in rows)


def test_more_at_a_time_than_there_are_is_said(capsys: Any) -> None:
    arguments = ["--limit", "2", "--concurrency", "1,4", "--engines", "none", "--quiet"]
    assert run_command(bench_virtual_gpu.main, arguments, name=NAME) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "demo has 2 requests to time: as many are there at a time at 4"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--trace", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--engines", "v3"], "--engines: unknown 'v3'; there are none, "),
        (
            ["--concurrency", "1,x"],
            "expected whole numbers from 1 on with commas between, got '1,x'",
        ),
        (["--concurrency", "0"], "expected whole numbers from 1 on with commas between, got '0'"),
        (["--warm", "100000"], "all warm"),
        (["--check", "--engines", "v2"], "--check: no trace named support"),
        (["--csv", "/nowhere/rows.csv"], "its folder does not exist"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], reason: str, capsys: Any) -> None:
    assert run_command(bench_virtual_gpu.main, arguments, name=NAME) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.strip().splitlines()) == 1
