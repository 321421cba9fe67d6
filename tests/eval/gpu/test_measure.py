"""The driver of a GPU run: its plan, its rows, and the whole of it on a CPU."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.gpu import measure
from reprise.eval.gpu.gpu_engine import GpuEngine, GpuEngineError, end_engines
from reprise.eval.gpu.gpu_rows import GpuRows
from reprise.eval.gpu.gpu_run import GpuRun
from reprise.eval.gpu.gpu_worker import (
    GpuJob,
    GpuReply,
    _said_since,
    engine_options,
    said_of_reports,
)
from reprise.eval.gpu.methods import METHODS, GpuMethod, methods_named
from reprise.eval.gpu.step_log import HEAD
from reprise.eval.gpu.workloads import SHARES, Workload, make_plan
from reprise.eval.replay.traces import TraceRow
from reprise.eval.report.command_line import run_command
from reprise.eval.report.results_csv import read_rows

ABOUT = {"machine": "a GPU", "model": "m", "vllm": "0", "torch": "0"}


def trace(size: int) -> list[TraceRow]:
    return [TraceRow(prompt=f"question {n}", response="answer") for n in range(size)]


def workload(name: str = "warm", size: int = 2) -> Workload:
    return Workload(name, 8, trace(size))


def reply(outputs: list[list[int]], wall_s: float = 2.0) -> GpuReply:
    return GpuReply(
        output_token_ids=outputs,
        steps=4,
        drafted_tokens=8,
        accepted_tokens=2,
        wall_s=wall_s,
    )


def test_no_request_is_asked_twice() -> None:
    plan = make_plan(trace(120), trace(300), dry_run=False)
    warm = [row.prompt for row in plan.warm_rows]
    for one in (plan.cold, plan.warm):
        assert [w.concurrency for w in one] == list(SHARES)
    asked = warm + [row.prompt for w in plan.warm for row in w.rows]
    assert len(asked) == len(set(asked)) <= 300
    cold = [row.prompt for w in plan.cold for row in w.rows]
    assert len(cold) == len(set(cold)) <= 120
    by_size = {w.concurrency: len(w.rows) for w in plan.warm}
    assert by_size[8] > 8
    assert by_size[32] > 32
    with pytest.raises(ValueError, match="the cold trace has 3 rows, too few"):
        make_plan(trace(3), trace(300), dry_run=False)


def test_methods() -> None:
    assert [m.name for m in methods_named("reprise-v1", dry_run=True)] == ["none", "reprise-v1"]
    with pytest.raises(ValueError, match="--methods: unknown 'x'"):
        methods_named("x", dry_run=False)
    with pytest.raises(ValueError, match="'ngram-gpu' needs a GPU"):
        methods_named("ngram-gpu", dry_run=True)
    assert METHODS[0].name == "none"
    everything = [m.name for m in methods_named(None, dry_run=False)]
    assert {"reprise-v2", "ngram-gpu"} <= set(everything)
    assert "reprise-v2-adaptive" not in everything
    assert {"ngram-gpu"}.isdisjoint(m.name for m in methods_named(None, dry_run=True))
    asked = methods_named("reprise-v2-adaptive", dry_run=False)
    assert [m.name for m in asked] == ["none", "reprise-v2-adaptive"]


def test_rows_are_written_at_once_and_read_by_the_next_run(tmp_path: Path) -> None:
    file = tmp_path / "gpu.csv"
    rows = GpuRows(file, ABOUT)
    none = rows.add("none", "v2", workload(), reply([[1, 2], [3, 4]]), [[1, 2], [3, 4]])
    assert none["to_none"] == 1.0
    drafted = rows.add("x", "v1", workload(), reply([[1, 2], [3, 5]], 1.0), [[1, 2], [3, 4]])
    assert (drafted["to_none"], drafted["identical_outputs"]) == (2.0, 1)
    assert (drafted["mean_acceptance_length"], drafted["drafted_per_step"]) == (1.5, 2.0)
    rows.add_failure("y", workload(), "it\nfell over")
    written = read_rows(file)
    assert [row["method"] for row in written] == ["none", "x", "y"]
    assert written[2]["note"] == "it fell over"
    again = GpuRows(file, ABOUT)
    assert again.is_done("x", workload())
    assert not again.is_done("y", workload())  # what failed is tried again
    assert not again.is_done("x", workload("cold"))
    assert not GpuRows(file, ABOUT | {"model": "another"}).is_done("x", workload())
    # A dry run on a CPU before is no measurement of a GPU.
    on_gpu = GpuRows(file, ABOUT | {"machine": "another"})
    assert not on_gpu.is_done("x", workload())
    assert on_gpu.add("v", "v1", workload(), reply([[1]]), None, "a word")["to_none"] == ""
    assert read_rows(file)[-1]["note"] == "a word"
    assert again.add("z", "v1", workload(), reply([[1, 2], [3]]), None)["to_none"] == 0.75


@pytest.mark.slow
def test_an_engine_that_does_not_start_is_left_out(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHT_PROCESSES_SPAWN", "1")  # what vLLM says when it is imported, too
    rows = GpuRows(tmp_path / "gpu.csv", ABOUT)
    run = GpuRun(out=tmp_path, rows=rows, deadline_s=100.0, max_tokens=4)
    job = GpuJob(
        model=str(tmp_path / "nowhere"),
        dtype="auto",
        speculative_config=None,
        max_num_seqs=2,
        kv_cache_bytes=None,
        full_graphs=False,
    )
    with run.engines([METHODS[0]], [job]) as engines:
        (engine,) = engines
        assert engine.failure is not None
        # It does not go on while others are measured.
        assert engine.has_ended
        run.measure(engines, make_plan(trace(9), trace(9), dry_run=True))
        run.trace_step(engines, trace(2))
    said = capsys.readouterr().out
    assert "starting engines: none" in said
    assert "no engine: none: " in said
    assert "no step of Reprise is traced" in said
    assert (tmp_path / "none.log").read_text()
    assert run.missing == {"none": 4}
    failed = read_rows(tmp_path / "gpu.csv")
    assert len(failed) == 4
    assert all(row["note"] and not row["tokens_per_s"] for row in failed)


@pytest.mark.slow
def test_a_run_that_is_late_waits_for_nothing(tmp_path: Path) -> None:
    rows = GpuRows(tmp_path / "gpu.csv", ABOUT)
    run = GpuRun(out=tmp_path, rows=rows, deadline_s=9.0, max_tokens=4)
    job = GpuJob(
        model="m",
        dtype="auto",
        speculative_config=None,
        max_num_seqs=2,
        kv_cache_bytes=None,
        full_graphs=False,
    )
    began = time.monotonic()
    with run.engines([METHODS[0]], [job]) as engines:
        assert [one.failure is not None for one in engines] == [True]
    assert time.monotonic() - began < 100.0
    engine = GpuEngine(METHODS[0], job)
    engine.start()
    try:
        with pytest.raises(GpuEngineError, match="no answer"):
            engine.wait_until_ready(0.0)
    finally:
        end_engines([engine])


def test_kernels_that_passed_are_not_checked_again(tmp_path: Path, capsys: Any) -> None:
    rows = GpuRows(tmp_path / "gpu.csv", ABOUT)
    run = GpuRun(out=tmp_path, rows=rows, deadline_s=100.0, max_tokens=4)
    for command, is_fine in (("exit(3)", False), ("print('fine')", True), ("exit('no!')", True)):
        with run.checking_kernels([[sys.executable, "-c", command]], machine="a GPU"):
            pass
        assert (tmp_path / "kernels.passed").exists() == is_fine
    assert (tmp_path / "kernels.log").read_text() == "fine\n"
    said = capsys.readouterr().out
    assert "see kernels.log: fine" in said
    assert "see kernels.log: no word" in said
    assert "the kernels were found right on a GPU before" in said
    # On another machine they are checked: a dry run says nothing of a GPU's.
    with run.checking_kernels([[sys.executable, "-c", "print('again')"]], machine="another GPU"):
        pass
    assert (tmp_path / "kernels.log").read_text() == "fine\nagain\n"


def test_what_an_engine_did_less_than_it_can_is_said() -> None:
    before = {
        "near_answers_in_time": {"meaning": 1, "tokens": 0},
        "near_answers_late": 0,
        "provider": {"answers": 0},
        "errors": {"propose": 1},
    }
    after = {
        **before,
        "near_answers_in_time": {"meaning": 4, "tokens": 2},
        "near_answers_late": 1,
        "provider": {"answers": 9},
        "errors": {"propose": 1, "record": 2},
    }
    assert said_of_reports(before, after) == [
        "near answers in time for 5 requests (3 by meaning, 2 by tokens, 1 late), "
        "9 answers in the corpus",
        "2 x record failed",
    ]
    del after["near_answers_late"]
    assert said_of_reports(before, after) == ["our worker does not report near_answers_late"]
    after["near_answers_late"] = None
    llm: Any = SimpleNamespace(collective_rpc=lambda _: [after])
    (note,) = _said_since(llm, before)
    assert note.startswith("not reported: ")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_vllm_knows_all_that_an_engine_on_a_gpu_is_asked_for(method: GpuMethod) -> None:
    pytest.importorskip("vllm")
    from vllm import envs
    from vllm.config import CompilationConfig, ProfilerConfig, SpeculativeConfig
    from vllm.engine.arg_utils import EngineArgs

    job = GpuJob(
        model="m",
        dtype="auto",
        speculative_config=method.speculative_config,
        max_num_seqs=2,
        kv_cache_bytes=1,
        full_graphs=method.full_graphs,
        profile_folder="/trace",
    )
    options = engine_options(job)
    assert options.keys() <= {field.name for field in dataclasses.fields(EngineArgs)}
    for name, kind in (
        ("speculative_config", SpeculativeConfig),
        ("compilation_config", CompilationConfig),
        ("profiler_config", ProfilerConfig),
    ):
        given = options.get(name) or {}
        assert given.keys() <= {field.name for field in dataclasses.fields(kind)}
    # Without these there is no trace.
    assert {"profiler", "torch_profiler_dir", "max_iterations"} <= options["profiler_config"].keys()
    assert method.environment.keys() <= envs.environment_variables.keys()
    assert method.runner == {"1": "v2", "0": "v1"}.get("".join(method.environment.values()), "")


def test_another_runner_than_was_asked_for_is_noted() -> None:
    by_name = {method.name: method for method in METHODS}
    job: Any = None
    for name, runner, note in (
        ("reprise-v2", "v1", "asked for runner v2"),
        ("reprise-v2", "v2", ""),
        ("suffix-v1", "v1", ""),
        ("none", "v1", ""),
    ):
        engine = GpuEngine(by_name[name], job)
        engine.runner = runner
        assert engine.note == note


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--dry-run", "--methods", "reprise-v2"], "needs a GPU"),
        (["--dry-run", "--warm", "/nowhere.jsonl"], "/nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], reason: str, tmp_path: Path, capsys: Any
) -> None:
    given = [*arguments, "--out", str(tmp_path / "out")]
    assert run_command(measure.main, given, name="measure.py") == 2
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_dry_run_measures_and_goes_on(tmp_path: Path, capsys: Any) -> None:
    arguments = ["--dry-run", "--out", str(tmp_path), "--methods", "reprise-v1"]
    whole = [*arguments, "--deadline-s", "1500", "--log-steps"]
    assert run_command(measure.main, whole, name="measure.py") == 0
    rows = read_rows(tmp_path / measure.ROWS_FILE)
    assert {(row["method"], row["workload"]) for row in rows} == {
        (method, f"{kind} at {number}")
        for method in ("none", "reprise-v1")
        for kind in ("cold", "warm")
        for number in (1, 2)
    }
    for row in rows:
        assert float(row["tokens_per_s"]) > 0
        assert row["identical_outputs"] == row["requests"]
        assert row["runner"] == "v1"
        assert ("near answers in time for " in row["note"]) == (row["method"] == "reprise-v1")
        assert "fail" not in row["note"]
    drafted = [row for row in rows if row["method"] == "reprise-v1"]
    assert sum(float(row["drafted_per_step"]) for row in drafted) > 0
    for method in ("none", "reprise-v1"):
        steps = read_rows(tmp_path / f"{method}.steps.csv")
        assert list(steps[0]) == HEAD.split(",")
        of_method = [row for row in rows if row["method"] == method]
        # Warm answers, the first request and the traced one are in the log as well.
        assert sum(int(step["emitted"]) for step in steps) > 12 * len(of_method)
        assert any(int(step["drafted"]) for step in steps) == (method == "reprise-v1")
        times = [float(step["seconds"]) for step in steps]
        assert times == sorted(times)
    assert list((tmp_path / "trace").iterdir())
    assert len(make_demo_trace()) > 8
    said = capsys.readouterr().out
    assert "a step of reprise-v1 is traced" in said
    assert "was logged" not in said  # that there is none of an engine
    # A run without time left changes nothing, and says what is missing of what it was asked for.
    assert run_command(measure.main, [*arguments, "--deadline-s", "10"], name="measure.py") == 0
    assert read_rows(tmp_path / measure.ROWS_FILE) == rows
    assert "no engine" in capsys.readouterr().out
    # One that has measured nothing yet is asked for: what is missing is said.
    other = ["--dry-run", "--out", str(tmp_path), "--methods", "suffix-v1", "--deadline-s", "10"]
    assert run_command(measure.main, other, name="measure.py") == 1
    assert "workloads that are missing: 4 of suffix-v1" in capsys.readouterr().out
