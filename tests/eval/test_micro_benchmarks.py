"""Micro-benchmarks: they can be run, and are compared with machines of their own kind."""

import importlib
import json
import shutil
from pathlib import Path

import pytest

from reprise.eval import micro_benchmarks
from reprise.eval.micro_benchmarks import BASELINES, BENCHMARKS, baseline_path
from reprise.eval.report.command_line import run_command

pytest.importorskip("pytest_benchmark")

FILES = sorted(BENCHMARKS.glob("bench_*.py"))


def run(*arguments: str) -> int:
    return run_command(micro_benchmarks.main, arguments, name="micro_benchmarks.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_they_time_is_still_there(path: Path) -> None:
    module = importlib.import_module(f"reprise.eval.micro.{path.stem}")
    assert any(name.startswith("bench_") and callable(one) for name, one in vars(module).items())


def test_baselines_name_the_kind_of_machine() -> None:
    assert baseline_path("AMD EPYC; AVX-512; 2 cores").name == "amd-epyc-avx-512-2-cores.json"
    for path in BASELINES.glob("*.json"):
        document = json.loads(path.read_text())
        assert baseline_path(document["machine_info"]["machine"]) == path
        files = {one["fullname"].partition("::")[0] for one in document["benchmarks"]}
        assert files == {f"eval/micro/{one.name}" for one in FILES}


def test_without_a_baseline_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(micro_benchmarks, "BASELINES", tmp_path)
    assert run("--compare") == 0
    assert "No baseline for this kind of machine" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_timed_of_a_workers_requests_is_what_they_need() -> None:
    assert micro_benchmarks.run_benchmarks("-k", "device_requests", "--benchmark-disable") == 0


@pytest.fixture
def quick_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only this file is collected, and everything is kept in a folder of the test's."""
    monkeypatch.setattr(micro_benchmarks, "BENCHMARKS", BENCHMARKS / "bench_record_encoding.py")
    monkeypatch.setattr(micro_benchmarks, "BASELINES", tmp_path)
    monkeypatch.setattr(micro_benchmarks, "HISTORY", tmp_path / "history")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_one")
def test_a_loss_of_speed_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / baseline_path().name
    assert micro_benchmarks.run_benchmarks("-k", "encode", f"--benchmark-json={path}") == 0
    micro_benchmarks.keep_what_is_compared(path)
    measured = path.read_text()
    for factor, fails in ((0.1, True), (10.0, False)):
        document = json.loads(measured)
        for benchmark in document["benchmarks"]:
            benchmark["stats"]["median"] *= factor
        path.write_text(json.dumps(document))
        capfd.readouterr()
        assert (run("--compare", "--only", "encode") != 0) == fails
        assert ("Performance has regressed" in "".join(capfd.readouterr())) == fails
        assert list((tmp_path / "history").rglob("*.json"))
        shutil.rmtree(tmp_path / "history")
