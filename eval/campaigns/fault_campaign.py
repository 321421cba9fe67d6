"""Faults against real servers, and whether any reply noticed.

    python eval/campaigns/fault_campaign.py                           200 faults of all kinds
    python eval/campaigns/fault_campaign.py --faults 2000 --seed 1 --log campaign.log
    python eval/campaigns/fault_campaign.py --only "Redis frozen,client aborts"

Two servers with Reprise run on this machine, one with a real Redis behind a proxy, one with an
SQLite file on a small file system of its own, and few KV blocks. Faults are drawn at random; while
each lasts, requests of several tenants are answered. Every reply is compared with what plain vLLM
answers to the same request, token counts included; one request of each batch comes from a
namespace that has seen nothing, and must be drafted for from nothing. In the end the servers are
told to stop, and every process, file and block of shared memory that is left is counted. Exit
status 1 if anything is wrong.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from reprise.eval.benchmarks.serving.load import MODEL_NAME, Server
from reprise.eval.campaigns.campaign_requests import (
    TENANTS,
    Asked,
    Outcome,
    Question,
    Verdict,
    abandoned,
    judged,
    long_question,
    make_questions,
    outcomes,
)
from reprise.eval.campaigns.fault_ground import SERVER_OPTIONS, Ground, standing
from reprise.eval.campaigns.fault_kinds import ABORTS, BURST, DISK_FULL, FAULT_KINDS, FaultKind
from reprise.eval.demo_data.demo_model import demo_model_path
from reprise.eval.report.command_line import InputError, names_of, run_command
from reprise.eval.report.progress_log import ProgressLog
from reprise.eval.report.tables import table_of

_NUM_QUESTIONS = 96
_NUM_LONG = 8
_PER_FAULT = 5
_BURST = 12
_REPORT_EVERY_S = 10.0


class Count(NamedTuple):
    """What came of the faults of one kind."""

    faults: int = 0
    requests: int = 0
    wrong: int = 0
    lost: int = 0
    crossed: int = 0
    idle: int = 0
    """Of the faults: those that found nothing to break, so that nothing was lived through."""

    def plus(self, verdicts: Sequence[Verdict], *, is_idle: bool = False) -> Count:
        """Return the count with one more fault."""
        return Count(
            self.faults + 1,
            self.requests + len(verdicts),
            self.wrong + sum(each.wrong is not None for each in verdicts),
            self.lost + sum(each.lost is not None for each in verdicts),
            self.crossed + sum(each.crossed is not None for each in verdicts),
            self.idle + is_idle,
        )


class Report(NamedTuple):
    """What a campaign found."""

    by_kind: dict[str, Count]
    leftovers: list[str]
    fresh: int = 0
    """Replies of namespaces that have seen nothing."""
    told: int = 0
    """Those of them that told what was drafted from."""

    @property
    def total(self) -> Count:
        """All kinds together."""
        return Count(*(sum(column) for column in zip(*self.by_kind.values(), strict=True)))

    @property
    def is_good(self) -> bool:
        """Whether nothing was wrong, lost, crossed or left, and crossings would have been seen."""
        total = self.total
        is_well = not (total.wrong or total.lost or total.crossed or self.leftovers)
        return is_well and (not self.fresh or self.told > 0)


class Options(NamedTuple):
    """What a campaign is run with."""

    faults: int
    seed: int
    model: str
    embedding_model: str


class Campaign:
    """Draws faults, lives through them, and counts.

    Args:
        ground: the servers.
        wanted: each question's outcome.
        kinds: the faults to draw from.
        seed: of faults and requests.
        log: what is said of each reply that is not as it should be.
    """

    def __init__(
        self,
        ground: Ground,
        wanted: dict[Question, Outcome],
        kinds: Sequence[FaultKind],
        *,
        seed: int,
        log: ProgressLog,
    ) -> None:
        self.by_kind: dict[str, Count] = {}
        self._ground = ground
        self._wanted = wanted
        self._kinds = kinds
        self._random = random.Random(seed)
        self._log = log
        self._num_salts = 0
        self.fresh = self.told = 0
        self._long = [each for each in wanted if each.is_long]
        self._short = [each for each in wanted if not each.is_long]

    def live_through_one(self) -> None:
        """Draw a fault and live through it.

        Raises:
            RuntimeError: a server has ended; with the end of its log.
        """
        [kind] = self._random.choices(self._kinds, [kind.weight for kind in self._kinds])
        self.live_through(kind, self._random.choice(kind.targets))

    def live_through(self, kind: FaultKind, target_name: str) -> None:
        """Begin a fault, ask, and end it.

        Raises:
            RuntimeError: a server has ended; with the end of its log.
        """
        target = self._ground.targets[target_name]
        server = self._ground.servers[target.name]
        asked = self._requests(kind)
        with kind.begin(target, self._random) as has_broken:
            verdicts = asyncio.run(self._ask(server, kind, asked))
        count = self.by_kind.get(kind.name, Count())
        self.by_kind[kind.name] = count.plus(verdicts, is_idle=not has_broken)
        self.fresh += sum(each.tells_drafts is not None for each in verdicts)
        self.told += sum(each.tells_drafts is True for each in verdicts)
        for each, verdict in zip(asked, verdicts, strict=True):
            if not verdict.is_good:
                self._log(f"{kind.name}, {target.name}: {verdict} for {each}")
        if server.has_ended():
            raise RuntimeError(
                f"the server with {target.name} has ended after {kind.name!r}; its log ends with:\n"
                f"{server.log_end()}"
            )

    async def _ask(self, server: Server, kind: FaultKind, asked: list[Asked]) -> list[Verdict]:
        seed = self._random.randrange(1 << 30)
        replies = judged(server.url, MODEL_NAME, asked, self._wanted, seed)
        if kind.name != ABORTS:
            return await replies
        # Others ask the same and leave: the first of them may be whom the rest wait for.
        leaving = [each for each in asked if each.cache_salt is None]
        after_s = self._random.uniform(0.0, 0.15)
        gone = abandoned(server.url, MODEL_NAME, leaving, after_s=after_s)
        _, verdicts = await asyncio.gather(gone, replies)
        return verdicts

    def _requests(self, kind: FaultKind) -> list[Asked]:
        choose = self._random.choice
        asked = []
        if kind.name == BURST:
            asked = [Asked(choose(self._long), choose(TENANTS)) for _ in range(_BURST)]
        half = len(self._short) // 2
        by_tenant = dict(zip(TENANTS, (self._short[:half], self._short[half:]), strict=True))
        for _ in range(_PER_FAULT):
            tenant = choose(TENANTS)
            asked.append(Asked(choose(by_tenant[tenant]), tenant))
        self._num_salts += 1
        salt = f"nobody-{self._num_salts}"
        return [*asked, Asked(choose(self._short), choose(TENANTS), cache_salt=salt)]


def wanted_outcomes(model: str, seed: int) -> dict[Question, Outcome]:
    """Ask plain vLLM everything that the campaign will ask.

    Raises:
        RuntimeError: it did not start, or did not answer.
    """
    questions = make_questions(seed, _NUM_QUESTIONS)
    questions += list(dict.fromkeys(long_question(each) for each in questions[:_NUM_LONG]))
    server = Server(model, None, dtype="float32", options=SERVER_OPTIONS)
    try:
        server.wait()
        found = asyncio.run(outcomes(server.url, MODEL_NAME, questions, concurrency=8))
    finally:
        server.stop()
    return dict(zip(questions, found, strict=True))


def run(options: Options, kinds: Sequence[FaultKind], log: ProgressLog) -> Report:
    """Run a campaign.

    Raises:
        RuntimeError: a server did not start, or has ended.
    """
    log("asking plain vLLM")
    wanted = wanted_outcomes(options.model, options.seed)
    log(f"{len(wanted)} questions answered; starting servers with Reprise")
    with standing(options.model, options.embedding_model) as ground:
        if not ground.can_fill_disk:
            kinds = [kind for kind in kinds if kind.name != DISK_FULL]
            log(f"no file system may be mounted here: {DISK_FULL!r} is left out")
        campaign = Campaign(ground, wanted, kinds, seed=options.seed, log=log)
        reported_s = time.monotonic()
        for number in range(1, options.faults + 1):
            campaign.live_through_one()
            if time.monotonic() - reported_s > _REPORT_EVERY_S or number == options.faults:
                reported_s = time.monotonic()
                total = Report(campaign.by_kind, []).total
                log(
                    f"{number} of {options.faults} faults; of {total.requests} replies "
                    f"{total.wrong} wrong, {total.lost} lost, {total.crossed} crossed"
                )
        log("stopping the servers")
        return Report(campaign.by_kind, ground.stop(), campaign.fresh, campaign.told)


def show(report: Report) -> None:
    """Print the table."""
    headings = ("fault", "faults", "replies", "wrong", "lost", "crossings", "nothing to break")
    table = table_of(*headings)
    for name, count in sorted(report.by_kind.items()):
        table.add_row(name, *map(str, count))
    table.add_row("all", *map(str, report.total), style="bold")
    console = Console()
    console.print(table)
    console.print(
        f"of {report.fresh} replies in namespaces that have seen nothing {report.told} told what "
        "was drafted from"
    )
    console.print(f"left behind after shutdown: {len(report.leftovers)}")
    for each in report.leftovers:
        console.print(f"  {each}", soft_wrap=True)


def _as_json(options: Options, report: Report) -> dict[str, Any]:
    return {
        "version": 1,
        "config": {"faults": options.faults, "seed": options.seed},
        "by_kind": {name: count._asdict() for name, count in report.by_kind.items()},
        "leftovers": report.leftovers,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0; 1 if a reply, a process or a file is not as it should be; 2 for bad
    input or a machine on which servers do not start."""
    return run_command(break_things, arguments, name="fault_campaign.py")


def break_things(
    faults: Annotated[int, typer.Option(min=1, help="How many, one after the other.")] = 200,
    seed: Annotated[int, typer.Option(help="Of faults and requests.")] = 0,
    only: Annotated[
        str | None,
        typer.Option(metavar="LIST", help=f"Some of: {', '.join(k.name for k in FAULT_KINDS)}."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PATH_OR_NAME", help="Else the demo model.")
    ] = None,
    embedding_model: Annotated[
        str, typer.Option(help="As the setting; a killed process loads `lexical` at once.")
    ] = "lexical",
    log: Annotated[Path | None, typer.Option(help="Append progress to this file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the counts as JSON.")] = None,
) -> int:
    """Break things under real servers, and compare every reply with plain vLLM's."""
    names = [kind.name for kind in FAULT_KINDS]
    chosen = names_of("--only", only, names) if only else names
    kinds = [kind for kind in FAULT_KINDS if kind.name in chosen]
    options = Options(faults, seed, model or str(demo_model_path()), embedding_model)
    try:
        report = run(options, kinds, ProgressLog(log))
    except RuntimeError as error:
        raise InputError(str(error)) from error
    show(report)
    if output is not None:
        output.write_text(json.dumps(_as_json(options, report), indent=1) + "\n")
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
