"""Results as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

from reprise.engine_ext.answer_page.answer_html import answers_section
from reprise.engine_ext.answer_page.document import document, escaped
from reprise.engine_ext.answer_page.shown import ShownTrace
from reprise.eval.replay.results import Run
from reprise.eval.replay.run_options import RunOptions
from reprise.eval.report.results_table import result_columns

# What is read first, as far as it is there; the rest folds away, below.
_FIRST = (
    *("method", "tokens/s", "to none", "speedup", "changed answers", "identical"),
    *("MAL", "acceptance", "drafted a step"),
)
_GLOSSARY = (
    "MAL is the mean acceptance length: tokens emitted for each verification step, the one that the"
    " model adds itself included. Acceptance is the share of drafted tokens that the model agreed"
    " with."
)
_GLOSSARY_OF_COST = (
    " Speedup counts emitted tokens against steps, where verifying one drafted token costs the"
    " given fraction of a step."
)
_GLOSSARY_OF_TIME = " Tokens/s was measured, and so was how it compares to none."


Answers = Sequence[tuple[str, ShownTrace]]
"""Traces by name, with the answers of each that are shown token by token."""


def write_html(
    path: str | Path,
    config: Mapping[str, Any],
    runs: Sequence[Run],
    *,
    plot_svg: str | None,
    answers: Answers = (),
) -> None:
    """Write the page; `plot_svg` is an SVG element or None."""
    page = render_html(config, runs, plot_svg=plot_svg, answers=answers)
    Path(path).write_text(page, encoding="utf-8")


def render_html(
    config: Mapping[str, Any],
    runs: Sequence[Run],
    *,
    plot_svg: str | None,
    answers: Answers = (),
) -> str:
    """The page: a table for each trace, answers, the frontier plot, and the settings."""
    cost = config.get("cost")
    sections = [
        f"<h2>{escaped(trace)}</h2>\n<div class=card>{_table(list(group), cost=cost)}</div>"
        for trace, group in groupby(runs, key=lambda run: run.trace)
    ]
    if answers:
        sections.append(answers_section(answers, threshold=float(config["threshold"])))
    if plot_svg is not None:
        sections.append(
            "<h2>What a drafted token buys</h2>\n<p>Each line joins one method's settings; a ring"
            " marks the setting of the tables. Higher is better, further left is cheaper.</p>\n"
            f'<div class="card plot">{plot_svg}</div>'
        )
    others = "".join(
        f"<dt>{escaped(name.replace('_', ' '))}</dt><dd>{escaped(_as_text(value))}</dd>"
        for name, value in config.items()
        if value is not None and not _is_option(name) and name != "command"
    )
    engine, glossary = "recorded answers", _GLOSSARY
    if config["engine"] != "replay":
        engine, glossary = "a real engine", glossary + _GLOSSARY_OF_TIME
    if cost is not None:
        glossary += _GLOSSARY_OF_COST
    body = (
        f"<h1>How much each method saves</h1>\n<p>Measured on {engine}. {glossary}</p>\n"
        + "\n".join(sections)
        + f"\n<h2>Settings</h2>\n<div class=card><code>{escaped(_command(config))}</code>"
        f"<dl>{others}</dl></div>"
    )
    return document("Reprise: acceptance rates", body, has_answers=bool(answers))


def _is_option(name: str) -> bool:
    return name in {field.name for field in fields(RunOptions)}


def _command(config: Mapping[str, Any]) -> str:
    """Return the settings as they are typed; another command says itself what was typed."""
    if "command" in config:
        return str(config["command"])
    words = ["python", "eval/acceptance_rate.py"]
    for name, value in config.items():
        if value is None or value is False or value == [] or not _is_option(name):
            continue
        option = "--trace" if name == "traces" else f"--{name.replace('_', '-')}"
        given = value if name == "traces" else [_as_text(value, separator=",")]
        words += [option] if value is True else [option, *map(str, given)]
    return shlex.join(words)


def _as_text(value: Any, *, separator: str = ", ") -> str:
    """Return a setting as people write it: no brackets, no quotes."""
    if isinstance(value, Mapping):
        return separator.join(f"{name} {_as_text(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return separator.join(map(str, value))
    return str(value)


def _table(runs: Sequence[Run], *, cost: float | None) -> str:
    columns = result_columns(runs, cost=cost)
    del columns["trace"]
    names = sorted(filter(_rank, columns), key=lambda name: _rank(name) or 0)
    ranked = next(
        (name for name in names if name == "tokens/s" or name.startswith("speedup")), "method"
    )
    best = _best_row(runs, by_speed=ranked == "tokens/s")
    others = [name for name in columns if _rank(name) is None]
    first = _rows(runs, {name: columns[name] for name in names}, ranked=ranked, best=best)
    if not others:
        return first
    rest = _rows(
        runs, {name: columns[name] for name in ("method", *others)}, ranked=ranked, best=best
    )
    return f"{first}<details><summary>Requests, time and memory</summary>{rest}</details>"


def _rank(name: str) -> int | None:
    """Return the place of a column among those that are read first, from 1 on; None: not one."""
    plain = "speedup" if name.startswith("speedup") else name
    return _FIRST.index(plain) + 1 if plain in _FIRST else None


def _rows(runs: Sequence[Run], columns: Mapping[str, list[str]], *, ranked: str, best: int) -> str:
    head = "".join(f"<th>{escaped(name)}</th>" for name in columns)
    body = []
    for number, run in enumerate(runs):
        cells = "".join(
            f"<td{' class=best' if name == ranked and number == best else ''}>"
            f"{escaped(cells[number])}</td>"
            for name, cells in columns.items()
        )
        body.append(f"<tr class={escaped(run.method)}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _best_row(runs: Sequence[Run], *, by_speed: bool) -> int:
    """The fastest of the runs that give the model's own answers."""

    def speed(number: int) -> float:
        run = runs[number]
        if run.changed_answers:
            return 0.0
        return (run.output_tokens_per_s if by_speed else run.model_speedup) or 0.0

    return max(range(len(runs)), key=speed)
