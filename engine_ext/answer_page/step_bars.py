"""One answer by each method, as a bar of steps: a column a step, as tall as it has tokens."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from reprise.engine_ext.answer_page.shown import MODEL, ShownStep

CLASSES = {"model": "m", "near_answer": "n", "context": "c", "corpus": "k", "draft": "u"}
"""Of sources, in the page's style."""
_WIDTH = 0.8


def step_bars(bars: Mapping[str, Sequence[ShownStep]], *, ours: str, others: Sequence[str]) -> str:
    """Return the bars of an answer, all on one scale.

    Args:
        bars: what each method's steps emitted, the prefill first, which is left out.
        ours: the method to stress.
        others: methods whose answer is another one.
    """
    longest = max(len(steps) - 1 for steps in bars.values())
    tallest = max((len(step.tokens) for steps in bars.values() for step in steps[1:]), default=1)
    rows = [
        _bar(method, steps[1:], longest, tallest, is_ours=method == ours, differs=method in others)
        for method, steps in bars.items()
    ]
    return f"<div class=bars><h4>Steps of each method</h4>{''.join(rows)}</div>"


def _bar(
    method: str,
    steps: Sequence[ShownStep],
    longest: int,
    tallest: int,
    *,
    is_ours: bool,
    differs: bool,
) -> str:
    name, number = html.escape(method), len(steps)
    count = f"{number} step{'' if number == 1 else 's'}"
    drawn = "".join(
        f"<path class={CLASSES[source]} d='{path}'/>"
        for source, path in _paths(steps, tallest).items()
    )
    note = "<br><small>another answer</small>" if differs else ""
    return (
        f"<div class='bar{' ours' if is_ours else ''}'><span>{name}{note}</span>"
        f"<svg viewBox='0 0 {longest or 1} {tallest}' preserveAspectRatio=none aria-hidden=true>"
        f"{drawn}</svg><span class=count>{count}</span></div>"
    )


def _paths(steps: Sequence[ShownStep], tallest: int) -> dict[str, str]:
    """Return one path a source: the model's token at the foot of each column, drafts above."""
    paths: dict[str, list[str]] = {}
    for number, step in enumerate(steps):
        foot = tallest
        tokens = sorted(step.tokens, key=lambda token: token.source != MODEL)
        begin = 0
        while begin < len(tokens):
            source, end = tokens[begin].source, begin
            while end < len(tokens) and tokens[end].source == source:
                end += 1
            height = end - begin
            paths.setdefault(source, []).append(f"M{number} {foot}h{_WIDTH}v-{height}h-{_WIDTH}z")
            foot -= height
            begin = end
    return {source: "".join(parts) for source, parts in paths.items()}
