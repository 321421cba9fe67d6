"""Benchmark of running ahead, in virtual time: what an engine gains that waits only for its drafts.

    python eval/benchmarks/bench_run_ahead.py
    python eval/benchmarks/bench_run_ahead.py \\
        --trace requests.jsonl --tokenizer my-model --concurrency 32

Recorded answers are replayed, several requests at a time, on a device whose steps take what is
given; the provider that drafts is the real one. Compared are an engine without drafts, one that
waits for every step, and one that runs ahead of those without drafts, as
`engine_ext/scheduling/run_ahead.py` does. It takes no GPU, and says nothing of how long steps are
on one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.replay import accepted_length
from reprise.eval.replay.token_rows import TokenizerError, TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.replay.traces import TraceError, load_trace
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.machine import describe_machine
from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.api.scheduling_mode import SchedulingMode

NEAR_ANSWERS = 8
NOISE = 0.03  # of step times as they are measured
STEPS_TO_COME_BACK = 2  # a client's next request takes part in the third step after its last one


class Device(NamedTuple):
    """What steps take."""

    step_s: float
    """One without drafts, launched while the one before it ran."""
    gap_s: float
    """How long the device idles before a step that waited for the one before it."""
    drafting_s: float
    """What is added to that where it waits for drafts as well."""
    token_cost: float
    """Of verifying a drafted token, in steps of its request."""

    def waited(self, drafted: int, batch: int) -> float:
        return self.gap_s + self.step_s * (1.0 + self.token_cost * drafted / batch)


class Step(NamedTuple):
    """What one came to."""

    emitted: dict[str, list[int]]
    drafted: int
    only_decoded: bool
    """No request was new in it."""


class Replay:
    """Requests of a trace, as many at a time as there are clients, in virtual time."""

    def __init__(self, rows: Sequence[TokenRow], concurrency: int, draft_length: int) -> None:
        self.tokens = self.steps = self.drafted_steps = 0
        self.spent_s = 0.0
        self._provider = DraftProvider(DraftConfig(num_speculative_tokens=draft_length))
        self._draft_length = draft_length
        self._overlap = TokenOverlap()
        self._concurrency = concurrency
        self._random = np.random.default_rng(0)
        self._waiting = [row for row in reversed(rows) if not row.warm]
        self._coming: list[tuple[int, TokenRow]] = []
        self._live: dict[str, TokenRow] = {}
        self._positions: dict[str, int] = {}
        for row in rows:
            if row.warm:
                self._learn(row)

    def has_requests(self) -> bool:
        """Whether any is left, once those that are due have come."""
        while self._waiting and len(self._live) + len(self._coming) < self._concurrency:
            self._coming.append((self.steps + STEPS_TO_COME_BACK, self._waiting.pop()))
        for due in [due for due in self._coming if due[0] <= self.steps]:
            self._coming.remove(due)
            self._live[due[1].request_id] = due[1]
            self._positions[due[1].request_id] = 0
        return bool(self._live or self._coming)

    @property
    def batch(self) -> int:
        """Requests in the next step."""
        return max(1, len(self._live))

    def run_step(self, seconds: float, drafts: Mapping[str, Sequence[int]]) -> Step:
        """All requests emit what is recorded: as much as their drafts had right, and one more."""
        emitted = {}
        only_decoded = all(self._positions.values())
        for request_id, row in self._live.items():
            rest = row.response_token_ids[self._positions[request_id] :]
            draft = drafts.get(request_id, ())
            now = rest[: accepted_length(draft, rest) + 1]
            emitted[request_id] = now.tolist()
            self._positions[request_id] += len(now)
            self.tokens += len(now)
        self.steps += 1
        self.spent_s += seconds
        drafted = sum(map(len, drafts.values()))
        self.drafted_steps += drafted > 0
        return Step(emitted, drafted, only_decoded)

    def draft(
        self, step: Step, mode: SchedulingMode, seconds: float | None, saved_s: float = 0.0
    ) -> dict[str, list[int]]:
        """Drafts after a step that took so many seconds; None: it is like no other."""
        for request_id, now in step.emitted.items():
            if self._positions[request_id] == len(now):
                self._begin(self._live[request_id])
        if seconds is not None and step.only_decoded:
            seconds *= float(np.exp(self._random.normal(0.0, NOISE)))
        else:
            seconds = None
        ended = self._ended()
        drafts = self._provider.step(
            list(step.emitted),
            list(step.emitted.values()),
            limits=lambda: [0 if i in ended else self._draft_length for i in step.emitted],
            step_time_s=seconds,
            num_drafted_tokens=step.drafted,
            mode=mode,
            saved_s=saved_s,
        )
        self.end_requests()
        return {i: draft for i, draft in zip(step.emitted, drafts, strict=True) if draft}

    def end_requests(self) -> None:
        """Let those that have emitted all learn and go."""
        for request_id in self._ended():
            self._provider.finish(request_id)
            self._learn(self._live.pop(request_id))

    def _ended(self) -> set[str]:
        return {
            request_id
            for request_id, row in self._live.items()
            if self._positions[request_id] == len(row.response_token_ids)
        }

    def _begin(self, row: TokenRow) -> None:
        self._provider.start(row.request_id, row.prompt_token_ids)
        near = self._overlap.search("", row.prompt_token_ids, count=NEAR_ANSWERS)
        if near:
            self._provider.attach(row.request_id, near)

    def _learn(self, row: TokenRow) -> None:
        self._provider.add_answer(row.request_id, row.response_token_ids)
        self._overlap.apply(
            AnswerUpdate(
                answer_id=row.request_id,
                namespace="",
                added=True,
                prompt_tokens=row.prompt_token_ids.astype("<i4").tobytes(),
                response_tokens=row.response_token_ids.astype("<i4").tobytes(),
            )
        )


def without_drafts(replay: Replay, device: Device) -> None:
    """Every step runs ahead."""
    while replay.has_requests():
        replay.run_step(device.step_s, {})
        replay.end_requests()


def waiting_always(replay: Replay, device: Device) -> None:
    """Every step is waited for, with drafts or without."""
    drafts: dict[str, list[int]] = {}
    while replay.has_requests():
        seconds = device.waited(sum(map(len, drafts.values())), replay.batch)
        step = replay.run_step(seconds + device.drafting_s, drafts)
        drafts = replay.draft(step, SchedulingMode.SYNC, seconds)


def running_ahead(replay: Replay, device: Device) -> None:
    """Steps with drafts are waited for; those without are followed at once by another without."""
    drafts: dict[str, list[int]] = {}
    would_draft = is_ahead = False
    while replay.has_requests():
        if drafts:
            seconds = device.waited(sum(map(len, drafts.values())), replay.batch)
            step = replay.run_step(seconds + device.drafting_s, drafts)
            drafts = replay.draft(step, SchedulingMode.DRAINED, seconds)
            continue
        step = replay.run_step(device.step_s + (0.0 if is_ahead else device.gap_s), {})
        known_s = device.step_s if is_ahead else None
        if is_ahead and would_draft:  # nothing was launched after this one
            drafts = replay.draft(step, SchedulingMode.DRAINED, known_s)
            replay.spent_s += device.drafting_s
            is_ahead = would_draft = False
        else:
            would_draft = bool(
                replay.draft(step, SchedulingMode.IN_FLIGHT, known_s, device.step_s / 2)
            )
            is_ahead = True


ENGINES: dict[str, Callable[[Replay, Device], None]] = {
    "without drafts": without_drafts,
    "waiting always": waiting_always,
    "running ahead": running_ahead,
}


def main(
    trace: Annotated[
        Path | None, typer.Option(help="Recorded requests, JSON lines; the demo trace if left out.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A tokenizer.json, a folder or a name; the demo model's.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    step_ms: Annotated[float, typer.Option(min=0.01, help="Of a step without drafts.")] = 5.0,
    gap_ms: Annotated[
        float, typer.Option(min=0.0, help="Before a step that waited for the one before it.")
    ] = 1.5,
    drafting_ms: Annotated[float, typer.Option(min=0.0, help="Of drafting for a batch.")] = 0.6,
    token_cost: Annotated[
        float, typer.Option(min=0.0, help="Of a drafted token, in steps of its request.")
    ] = 0.05,
    draft_length: Annotated[int, typer.Option(min=1, help="Most tokens of a draft.")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="First rows of the trace only.")] = None,
) -> None:
    """What an engine gains that waits only for its drafts, in virtual time."""
    try:
        loaded = make_demo_trace() if trace is None else load_trace(trace)
        rows = tokenize_rows(loaded[:limit], load_tokenizer(tokenizer or demo_tokenizer_path()))
    except (TraceError, TokenizerError) as error:
        raise InputError(str(error)) from error
    expected = sum(len(row.response_token_ids) for row in rows if not row.warm)
    if not expected:
        raise InputError("the trace has no request to time: all warm")
    device = Device(step_ms / 1e3, gap_ms / 1e3, drafting_ms / 1e3, token_cost)
    DraftProvider().warm_up()
    table = Table(title=f"{concurrency} requests at a time, steps of {step_ms:g} ms", box=None)
    table.add_column("engine")
    for heading in ("tokens/s", "to none", "steps", "with drafts"):
        table.add_column(heading, justify="right")
    speeds = []
    for name, serve in track(
        ENGINES.items(), "Replaying", console=Console(stderr=True), transient=True
    ):
        replay = Replay(rows, concurrency, draft_length)
        serve(replay, device)
        if replay.tokens != expected:
            raise RuntimeError(f"{name}: {replay.tokens} tokens came, {expected} are recorded")
        speeds.append(replay.tokens / replay.spent_s)
        figures = (f"{speeds[-1]:,.0f}", f"{speeds[-1] / speeds[0]:.2f}", f"{replay.steps:,}")
        table.add_row(name, *figures, f"{replay.drafted_steps / replay.steps:.0%}")
    console = Console()
    console.print(table)
    console.print("In virtual time: no figure of a device. Every answer is as recorded.")
    # Drafts and what is learned of their cost come from this processor, steps do not.
    console.print(f"Drafted on {describe_machine()}.", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_run_ahead.py"))
