"""Engines in virtual time: what they must come to, whatever steps cost."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest

from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.token_rows import TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.virtual.engines import DeviceDrafter
from reprise.eval.virtual.h200 import H200
from reprise.eval.virtual.measured_runs import GAP, PREFILL_MS
from reprise.eval.virtual.replays import Outcome, Prices, virtual_engine

PRICES = Prices(
    device=H200(prefill_ms=PREFILL_MS),
    gap=GAP,
    suffix_gap=GAP,
    retrieval_s=0.015,
    drafter=DeviceDrafter(position_s=3e-6),
    draft_length=16,
)


@pytest.fixture(scope="module")
def all_rows() -> list[TokenRow]:
    return tokenize_rows(make_demo_trace(), load_tokenizer(demo_tokenizer_path()))


@pytest.fixture(scope="module")
def rows(all_rows: list[TokenRow]) -> list[TokenRow]:
    """Few are timed: copies are made by their definition, row by row."""
    timed = [row for row in all_rows if not row.warm][:48]
    return [row for row in all_rows if row.warm] + timed


def serve(
    name: str,
    rows: list[TokenRow],
    *,
    concurrency: int = 8,
    prices: Prices = PRICES,
    is_warm: bool = True,
) -> Outcome:
    with virtual_engine(name, prices, embedder=None) as engine:
        if is_warm:
            engine.learn([row for row in rows if row.warm])
        return engine.serve([row for row in rows if not row.warm], concurrency=concurrency)


@pytest.fixture(scope="module")
def served(rows: list[TokenRow]) -> Callable[[str], Outcome]:
    """A function from an engine's name to what it comes to, computed once."""
    return functools.cache(lambda name: serve(name, rows))


@pytest.mark.parametrize("name", ["v2", "v2-adaptive"])
def test_drafts_on_the_device_pay_where_they_are_right(
    name: str, served: Callable[[str], Outcome]
) -> None:
    none, drafted = served("none"), served(name)
    assert drafted.tokens == none.tokens
    assert drafted.tokens_per_s > 1.7 * none.tokens_per_s
    assert drafted.mean_acceptance_length > 1.7


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 8, 32])
@pytest.mark.parametrize("name", ["v2", "v2-adaptive"])
def test_drafts_that_are_never_right_cost_next_to_nothing(
    name: str, concurrency: int, rows: list[TokenRow]
) -> None:
    wrong = replace(PRICES, drafter=DeviceDrafter(position_s=3e-6, quality=0.0))
    none = serve("none", rows, concurrency=concurrency)
    drafted = serve(name, rows, concurrency=concurrency, prices=wrong)
    assert drafted.accepted == 0
    assert drafted.tokens_per_s > 0.97 * none.tokens_per_s


@pytest.mark.slow
def test_better_drafts_and_cheaper_ones_are_faster(
    rows: list[TokenRow], served: Callable[[str], Outcome]
) -> None:
    better = served("v2")
    worse = replace(PRICES, drafter=DeviceDrafter(position_s=3e-6, quality=0.7))
    dearer = replace(PRICES, drafter=DeviceDrafter(position_s=2e-4))
    assert serve("v2", rows, prices=worse).tokens_per_s < better.tokens_per_s
    assert serve("v2", rows, prices=dearer).tokens_per_s < better.tokens_per_s


@pytest.mark.slow
def test_the_same_figures_every_time(rows: list[TokenRow]) -> None:
    for name in ("v1", "v1-ahead", "v2-adaptive"):
        assert serve(name, rows[:300]) == serve(name, rows[:300])


def test_waiting_for_the_host_costs_its_gap(
    rows: list[TokenRow], served: Callable[[str], Outcome]
) -> None:
    short = served("v1")
    long = serve("v1", rows, prices=replace(PRICES, gap=GAP._replace(drafted_ms={1: 6.0})))
    assert long.tokens_per_s < short.tokens_per_s < served("v2").tokens_per_s


class DearDrafts(H200):
    """A device that takes as long for a drafted token as for a step of its request."""

    def step_s(self, batch: int, drafted: int = 0, prefilled: int = 0) -> float:
        return super().step_s(batch, 0, prefilled) * (1.0 + drafted / batch)

    def sent_ahead_s(
        self, batch: int, drafted: int = 0, prefilled: int = 0, *, in_pieces: bool = False
    ) -> float:
        ahead_s = super().sent_ahead_s(batch, 0, prefilled, in_pieces=in_pieces)
        return ahead_s * (1.0 + drafted / batch)


def test_running_ahead_is_as_fast_as_no_drafts_where_none_pay(all_rows: list[TokenRow]) -> None:
    dear = replace(PRICES, device=DearDrafts(prefill_ms=PREFILL_MS))
    names = ("none", "v1", "v1-ahead")
    none, waiting, ahead = (serve(name, all_rows, prices=dear) for name in names)
    assert waiting.tokens_per_s < 0.85 * none.tokens_per_s
    assert ahead.tokens_per_s > 0.87 * none.tokens_per_s  # finding out costs the rest
    assert ahead.drafted_steps < 0.15 * ahead.steps
