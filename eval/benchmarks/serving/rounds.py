"""Servers that are compared, asked in rounds, forwards and backwards by turns; their figures."""

import asyncio
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from reprise.eval.benchmarks.serving.load import Server, Timing, alone, ask_all, load_of
from reprise.eval.report.intervals import median_interval


class Contender(NamedTuple):
    """A way to serve."""

    name: str
    server: Server
    headers: dict[str, str]


class Round(NamedTuple):
    """What one contender made of one round's questions."""

    timings: list[Timing]
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second."""
        return load_of(self.timings, self.wall_s).tokens_per_s


def alternate(
    contenders: Sequence[Contender],
    questions_by_round: Sequence[Sequence[str]],
    *,
    concurrency: int,
    max_tokens: int,
    own_salts: bool = False,
) -> list[dict[str, Round]]:
    """Return every round by contender; every other one runs backwards, so that what drifts evenly
    on the machine cancels.

    Args:
        contenders: while one of them is asked, the others' servers stand still.
        questions_by_round: of each round, for all contenders.
        concurrency: requests at once.
        max_tokens: of an answer.
        own_salts: each question in a namespace of its own.
    """
    servers = [each.server for each in contenders]
    rounds = []
    for number, questions in enumerate(questions_by_round):
        by_name = {}
        for each in contenders[:: -1 if number % 2 else 1]:
            salt_prefix = (
                f"{each.name.replace(' ', '-')}-{concurrency}-{number}" if own_salts else None
            )
            with alone(each.server, servers):
                timings, wall_s = asyncio.run(
                    ask_all(
                        each.server,
                        questions,
                        concurrency=concurrency,
                        max_tokens=max_tokens,
                        headers=each.headers,
                        salt_prefix=salt_prefix,
                    )
                )
            by_name[each.name] = Round(timings, wall_s)
        rounds.append(by_name)
    return rounds


def figures_of(
    section: str, rounds: Sequence[dict[str, Round]], name: str, first: str
) -> list[dict[str, Any]]:
    """Return rows of a contender's speed, and of what its requests took; `first` is the one that it
    is compared with."""
    timings = [timing for by_name in rounds for timing in by_name[name].timings]
    load = load_of(timings, sum(by_name[name].wall_s for by_name in rounds))
    wanted = [text for by_name in rounds for text in texts(by_name[first])]
    answers = [timing.text for timing in timings]
    same = sum(map(str.__eq__, answers, wanted))
    return [
        tokens_per_s(section, "tokens_per_s", rounds, name),
        *([] if name == first else [ratio(section, rounds, name, first)]),
        figure_row(section, "first_token_ms_p50", load.first_token_ms_p50),
        figure_row(section, "whole_ms_p50", load.whole_ms_p50),
        figure_row(section, "whole_ms_p99", load.whole_ms_p99),
        figure_row(section, f"answers as with {first}", 100.0 * same / len(answers), unit="%"),
    ]


def texts(given: Round) -> list[str]:
    """Return the answers of a round."""
    return [timing.text for timing in given.timings]


def tokens_per_s(
    section: str, figure: str, rounds: Sequence[dict[str, Round]], name: str
) -> dict[str, Any]:
    """Return a row of the median of a contender's rounds."""
    speeds = [by_name[name].tokens_per_s for by_name in rounds]
    note = f"{min(speeds):.0f} to {max(speeds):.0f}"
    return figure_row(section, figure, statistics.median(speeds), unit="tok/s", note=note)


def ratio(
    section: str, rounds: Sequence[dict[str, Round]], name: str, first: str
) -> dict[str, Any]:
    """Return a row of a contender's throughput to that of `first`, round by round."""
    ratios = [by_name[name].tokens_per_s / by_name[first].tokens_per_s for by_name in rounds]
    note = f"{min(ratios):.3f} to {max(ratios):.3f}"
    if (interval := median_interval(ratios)) is not None:
        note += f"; 95% sure: {interval[0]:.3f} to {interval[1]:.3f}"
    figure = f"throughput / {first}, median of rounds"
    return figure_row(section, figure, statistics.median(ratios), unit="x", note=note)


def figure_row(
    section: str, name: str, value: float, *, unit: str = "ms", note: str = ""
) -> dict[str, Any]:
    """Return a row of the file of results."""
    return {"section": section, "name": name, "value": value, "unit": unit, "note": note}


def p50_ms(seconds: Sequence[float]) -> float:
    """Return the median in milliseconds."""
    return statistics.median(seconds) * 1e3
