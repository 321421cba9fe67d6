"""Results as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

from reprise.eval.answer_page.answer_html import (
    answers_section,
    answers_style,
    content_policy,
    escaped,
)
from reprise.eval.answer_page.shown import ShownTrace
from reprise.eval.replay.results import Run
from reprise.eval.replay.results_table import result_columns
from reprise.eval.replay.run_options import RunOptions

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1917; --soft: #6b645f; --line: #e7e5e4;
  --paper: #fafaf9; --card: #fff; --control: #a8a29e; --best: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f2eeea; --soft: #b3aaa3; --line: #3b3531; --paper: #161310; --card: #1f1b18;
    --control: #6b645f; --best: #ff8a4c; }
  .plot svg { filter: invert(1) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 40px 0 8px; }
p { max-width: 70ch; color: var(--soft); margin: 0 0 8px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 8px 16px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 10px; text-align: right; }
td { white-space: nowrap; }
th { vertical-align: bottom; line-height: 1.3; }
th { font-size: 12px; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tbody tr + tr td { border-top: 1px solid var(--line); }
tr.reprise td { font-weight: 600; }
td.best { color: var(--best); font-weight: 700; }
svg { max-width: 100%; height: auto; display: block; margin: 0 auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 20px; font-size: 13px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { display: block; font: 13px/1.6 ui-monospace, Menlo, Consolas, monospace; margin: 8px 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin-top: 8px; } summary { cursor: pointer; color: var(--soft); font-size: 13px; }
@media (max-width: 640px) {
  body { font-size: 14px; }
  main { padding: 24px 10px 40px; }
  .card { padding: 4px 6px; }
  table { font-size: 12px; }
  th, td { padding: 6px 4px; }
  th { font-size: 10px; hyphens: auto; }
  td:first-child { white-space: normal; }
  .plot svg { min-width: 560px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 6px; }
}
"""
# What is read first, as far as it is there; the rest folds away, below.
_FIRST = (
    *("method", "tokens/s", "speedup", "changed answers", "identical"),
    *("MAL", "acceptance", "drafted a step"),
)
_GLOSSARY = (
    "MAL is the mean acceptance length: tokens emitted for each verification step, the one that the"
    " model adds itself included. Acceptance is the share of drafted tokens that the model agreed"
    " with. Speedup counts emitted tokens against steps, where verifying one drafted token costs"
    " the given fraction of a step; tokens/s, where shown, was measured instead."
)


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
    cost = float(config["cost"])
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
    engine = "recorded answers" if config["engine"] == "replay" else "a real engine"
    return (
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"{content_policy(has_script=bool(answers))}\n<title>Reprise: acceptance rates</title>\n"
        f"<style>{_STYLE}{answers_style() if answers else ''}</style>\n<main>\n"
        f"<h1>How much each method saves</h1>\n<p>Measured on {engine}. {_GLOSSARY}</p>\n"
        + "\n".join(sections)
        + f"\n<h2>Settings</h2>\n<div class=card><code>{escaped(_command(config))}</code>"
        f"<dl>{others}</dl></div>\n</main>\n</html>\n"
    )


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


def _table(runs: Sequence[Run], *, cost: float) -> str:
    columns = result_columns(runs, cost=cost)
    del columns["trace"]
    ranked = "tokens/s" if "tokens/s" in columns else f"speedup at {cost:g}"
    best = _best_row(runs, by_speed="tokens/s" in columns)
    names = sorted(filter(_rank, columns), key=lambda name: _rank(name) or 0)
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
