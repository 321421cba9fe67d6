"""The benchmark of running ahead: what its engines come to, and that answers are as recorded."""

from typing import Any

import pytest

from reprise.eval.benchmarks import bench_run_ahead
from reprise.eval.benchmarks.bench_run_ahead import ENGINES, Device, Replay
from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.token_rows import TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.report.command_line import run_command


@pytest.fixture(scope="module")
def rows() -> list[TokenRow]:
    return tokenize_rows(make_demo_trace(), load_tokenizer(demo_tokenizer_path()))


def speeds(rows: list[TokenRow], device: Device) -> dict[str, tuple[float, Replay]]:
    found = {}
    for name, serve in ENGINES.items():
        replay = Replay(rows, 8, 16)
        serve(replay, device)
        assert replay.tokens == sum(len(row.response_token_ids) for row in rows if not row.warm)
        found[name] = (replay.tokens / replay.spent_s, replay)
    return found


def test_running_ahead_is_as_fast_as_no_drafts_where_none_pay(rows: list[TokenRow]) -> None:
    dear = speeds(rows, Device(step_s=0.005, gap_s=0.002, drafting_s=0.0005, token_cost=1.0))
    none, waiting, ahead = (speed for speed, _ in dear.values())
    assert waiting < 0.85 * none
    assert ahead > 0.87 * none  # 0.92; finding out costs the rest
    assert dear["running ahead"][1].drafted_steps < 0.15 * dear["running ahead"][1].steps


def test_running_ahead_drafts_where_drafts_pay(rows: list[TokenRow]) -> None:
    cheap = speeds(rows, Device(step_s=0.005, gap_s=0.001, drafting_s=0.0005, token_cost=0.01))
    none, waiting, ahead = (speed for speed, _ in cheap.values())
    assert min(waiting, ahead) > 1.5 * none
    assert ahead > 0.9 * waiting


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--trace", "/nowhere.jsonl"], "/nowhere.jsonl"), (["--limit", "1"], "all warm")],
)
def test_bad_input_is_one_line(arguments: list[str], reason: str, capsys: Any) -> None:
    assert run_command(bench_run_ahead.main, arguments, name="bench_run_ahead.py") == 2
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.strip().splitlines()) == 1
