"""Benchmark of measured costs: what is lost because they are measured, on a machine others use.

    python eval/benchmarks/bench_costs.py

Requests are replayed, several at a time. A step takes what a known cost says, and longer on a
disturbed machine. A provider that measures what drafts cost, from those times, is compared with one
that is given it. Speed counts the steps as they would be undisturbed, and the time drafting took.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Generator
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from reprise.eval.benchmarks.bench_drafts import MAX_DRAFT_TOKENS, IntArray, make_answers
from reprise.eval.replay.replay import accepted_length
from reprise.eval.report.command_line import run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.tables import table_of
from reprise.spec import DraftConfig, DraftProvider

CACHED, REQUESTS, PROMPT_TOKENS = 400, 96, 64
STEP_S = 0.003  # without drafts, undisturbed
MAX_DRAFTING_S = 0.002  # what held this process up while it drafted is no part of it

StepTimes = Generator[float, float, None]
"""Sent the seconds of an undisturbed step, yields what it takes."""
Disturbance = Callable[[np.random.Generator], StepTimes]


def quiet(random: np.random.Generator) -> StepTimes:
    """Nothing but a little noise."""
    seconds = yield 0.0
    while True:
        seconds = yield seconds * float(np.exp(random.normal(0.0, 0.03)))


def other_speed_every(steps: int) -> Disturbance:
    """The machine slows down and recovers, and one step in ten is held up."""

    def disturb(random: np.random.Generator) -> StepTimes:
        seconds = yield 0.0
        while True:
            slower = 1.0 if random.random() < 0.4 else float(random.uniform(1.2, 3.0))
            for _ in range(1 + int(random.exponential(steps))):
                held_up = random.exponential(STEP_S) if random.random() < 0.1 else 0.0
                noise = float(np.exp(random.normal(0.0, 0.05)))
                seconds = yield seconds * slower * noise + held_up

    return disturb


def others_take_turns(random: np.random.Generator) -> StepTimes:
    """Other processes get the core for milliseconds, as often as once in a step."""
    seconds = yield 0.0
    while True:
        turns = random.uniform(0.5, 1.0, random.poisson(seconds / STEP_S))
        noise = float(np.exp(random.normal(0.0, 0.03)))
        seconds = yield seconds * noise + float((turns * random.choice([1.0, 2.0])).sum()) * STEP_S


DISTURBANCES: dict[str, Disturbance] = {
    "quiet": quiet,
    "another speed every 200 steps": other_speed_every(200),
    "another speed every 20 steps": other_speed_every(20),
    "another speed every 2 steps": other_speed_every(2),
    "others take turns": others_take_turns,
}


def serve(
    provider: DraftProvider, batch: int, cost: float, disturb: Disturbance, seed: int
) -> float:
    """Tokens a second."""
    answers = make_answers(REQUESTS, 2)
    prompts = make_answers(REQUESTS, 3)
    for i, cached in enumerate(make_answers(CACHED, 1)):
        provider.add_answer(f"cached {i}", cached)
    step_s = disturb(np.random.default_rng(seed))
    next(step_s)
    waiting = list(range(REQUESTS))
    live: dict[str, tuple[IntArray, int, list[int]]] = {}
    spent_s, tokens = 0.0, 0
    while live or waiting:
        begins = bool(waiting) and len(live) < batch
        while waiting and len(live) < batch:
            request = waiting.pop()
            provider.start(str(request), prompts[request][:PROMPT_TOKENS])
            live[str(request)] = (answers[request], 0, [])
        emitted = [_emitted(*state) for state in live.values()]
        drafted = sum(len(draft) for _, _, draft in live.values())
        seconds = STEP_S * (1.0 + cost * drafted / len(live))
        taken_s = step_s.send(seconds)
        began_s = time.perf_counter()
        drafts = provider.step(
            list(live),
            emitted,
            step_time_s=None if begins else taken_s,
            num_drafted_tokens=drafted,
        )
        spent_s += seconds + min(MAX_DRAFTING_S, time.perf_counter() - began_s)
        states = zip(list(live.items()), emitted, drafts, strict=True)
        for (request_id, (answer, position, _)), now, draft in states:
            assert now == answer[position : position + len(now)].tolist()
            tokens += len(now)
            live[request_id] = (answer, position + len(now), draft)
            if position + len(now) == len(answer):
                provider.finish(request_id)
                provider.add_answer(request_id, answer)
                del live[request_id]
    assert tokens == sum(map(len, answers))
    return tokens / spent_s


def _emitted(answer: IntArray, position: int, draft: list[int]) -> list[int]:
    """The answer's tokens that a step emits: those of the draft that are right, and one more."""
    rest = answer[position:]
    emitted: list[int] = rest[: accepted_length(draft, rest) + 1].tolist()
    return emitted


def main(
    batch: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    cost: Annotated[
        float, typer.Option(min=0.0, help="Of verifying a token, in steps of its request.")
    ] = 0.04,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each disturbance.")] = 10,
) -> None:
    """What is lost because the cost of drafts is measured, on a machine that others use."""
    given = DraftConfig(num_speculative_tokens=MAX_DRAFT_TOKENS, verify_cost=cost, num_threads=1)
    measuring = given.model_copy(update={"verify_cost": None})
    provider = DraftProvider(given)
    provider.warm_up()
    best = statistics.median(serve(DraftProvider(given), batch, cost, quiet, s) for s in range(3))
    title = f"{batch} requests at a time, {cost:g} of a step for a token"
    table = table_of("the machine", "median", "worst tenth", "worst", title=title)
    runs = [(name, seed) for name in DISTURBANCES for seed in range(seeds)]
    speeds: dict[str, list[float]] = {name: [] for name in DISTURBANCES}
    for name, seed in track(runs, "Replaying", console=Console(stderr=True), transient=True):
        speed = serve(DraftProvider(measuring), batch, cost, DISTURBANCES[name], seed)
        speeds[name].append(speed / best)
    for name, ratios in speeds.items():
        ratios.sort()
        figures = (statistics.median(ratios), ratios[len(ratios) // 10], ratios[0])
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    console = Console()
    console.print(table)
    console.print(
        f"Speed against that with the cost given, {best:,.0f} tokens/s."
        " Every answer is as recorded.",
        soft_wrap=True,
    )
    console.print(f"Measured on {describe_machine()}.", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_costs.py"))
