"""The benchmark of running ahead: what its engines come to, and that answers are as recorded."""

from typing import Any

import pytest

from reprise.eval.benchmarks import bench_run_ahead
from reprise.eval.benchmarks.bench_run_ahead import ENGINES, SteadyDevice, run_engine
from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.token_rows import TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.report.command_line import run_command
from reprise.eval.virtual.engines import DeviceDrafter, HostGap
from reprise.eval.virtual.replays import Outcome, Prices


@pytest.fixture(scope="module")
def rows() -> list[TokenRow]:
    return tokenize_rows(make_demo_trace(), load_tokenizer(demo_tokenizer_path()))


def run_all(rows: list[TokenRow], *, gap_ms: float, token_cost: float) -> list[Outcome]:
    prices = Prices(
        device=SteadyDevice(0.005, token_cost),
        gap=HostGap({1: gap_ms}, {1: gap_ms}, {1: 0.5}),
        suffix_gap=HostGap({1: gap_ms}, {1: gap_ms}, {1: 0.5}),
        retrieval_s=0.0,
        drafter=DeviceDrafter(0.0, 1.0),
        draft_length=16,
    )
    return [run_engine(name, rows, concurrency=8, prices=prices) for name in ENGINES]


def test_running_ahead_is_as_fast_as_no_drafts_where_none_pay(rows: list[TokenRow]) -> None:
    outcomes = run_all(rows, gap_ms=2.0, token_cost=1.0)
    none, waiting, ahead = (outcome.tokens_per_s for outcome in outcomes)
    assert waiting < 0.85 * none
    assert ahead > 0.87 * none  # finding out costs the rest
    assert outcomes[2].drafted_steps < 0.15 * outcomes[2].steps


def test_running_ahead_drafts_where_drafts_pay(rows: list[TokenRow]) -> None:
    none, waiting, ahead = (o.tokens_per_s for o in run_all(rows, gap_ms=1.0, token_cost=0.01))
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
