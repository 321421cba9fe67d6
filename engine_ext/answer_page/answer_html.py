"""Answers token by token, as HTML: coloured by source, with what a semantic cache would have said.

All that comes from a trace or a model is text in it, never markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from reprise.engine_ext.answer_page.changed_words import ChangedWords, changed_words
from reprise.engine_ext.answer_page.document import answers_script, escaped
from reprise.engine_ext.answer_page.records import SeenAnswer
from reprise.engine_ext.answer_page.shown import (
    MODEL,
    SOURCES,
    ShownAnswer,
    ShownStep,
    ShownToken,
    ShownTrace,
)
from reprise.engine_ext.answer_page.step_bars import CLASSES, step_bars

_LABELS = {
    "model": "the model itself",
    "near_answer": "near answer",
    "context": "context",
    "corpus": "corpus",
    "draft": "unknown source",
}
_MAX_QUESTION, _MAX_NEAR, _MAX_PROMPT, _MAX_REJECTED = 400, 200, 4000, 80
"""Characters that are shown."""


def answers_section(traces: Sequence[tuple[str, ShownTrace]], *, threshold: float) -> str:
    """Return everything about the answers of these traces, by name: tools, answers, detail.

    Args:
        threshold: of the semantic cache.
    """
    parts = [_tools(traces), f"<noscript><p>{_legend()}</p></noscript>"]
    for name, trace in traces:
        articles = [
            _article(number, answer, trace, threshold=threshold)
            for number, answer in enumerate(trace.answers, 1)
        ]
        parts.append(
            f"<section><h2>What came for free: {escaped(name)}</h2>{_summary(trace, threshold)}"
            f"{''.join(articles)}</section>"
        )
    parts.append("<aside id=detail role=status aria-live=polite></aside>")
    return "\n".join(parts) + f"\n<script>{answers_script()}</script>\n"


def _tools(traces: Sequence[tuple[str, ShownTrace]]) -> str:
    used = {
        source
        for _, trace in traces
        for answer in trace.answers
        for steps in answer.bars.values()
        for step in steps
        for source in [token.source for token in step.tokens]
    }
    buttons = "".join(
        f"<button type=button aria-pressed=true data-source={CLASSES[source]}>"
        f"<span class='key {CLASSES[source]}'></span>{_LABELS[source]}</button>"
        for source in SOURCES
        if source in used
    )
    kinds = {"": "all answers", "drafted": "something came for free"}
    kinds["plain"] = "nothing came for free"
    if any(trace.has_cache for _, trace in traces):
        kinds |= {
            "wrong": "a semantic cache would say something else",
            "right": "a semantic cache would say the same",
        }
    options = "".join(f"<option value='{name}'>{text}</option>" for name, text in kinds.items())
    return (
        f"<div class=tools hidden role=group aria-label='What is shown'>"
        f"<fieldset><legend>Tokens from</legend>{buttons}</fieldset>"
        f"<label><span class=only-read>Answers</span><select>{options}</select></label>"
        "<label><span class=only-read>Search in questions and answers</span>"
        "<input type=search placeholder='Search'></label>"
        "<span class=found role=status></span></div>"
    )


def _legend() -> str:
    """Return what the colours mean, for where the buttons that say so do not work."""
    return ", ".join(
        f"<span class='key {CLASSES[source]}'></span>{_LABELS[source]}" for source in SOURCES
    )


def _summary(trace: ShownTrace, threshold: float) -> str:
    answers = trace.answers
    tokens = sum(answer.num_tokens for answer in answers)
    free = sum(_num_free(answer) for answer in answers)
    steps = sum(len(answer.steps) - 1 for answer in answers)
    number = f"these {len(answers)} answers" if len(answers) > 1 else "this answer"
    why = (
        f"they were drafted by {escaped(trace.method)} and what the model would have said, and took"
        " no step of their own"
        if free
        else f"none that {escaped(trace.method)} drafted is what the model says"
    )
    text = (
        f"In {number}, {escaped(trace.which)}, <b>{free:,} of {tokens:,} tokens"
        f" ({free / max(tokens, 1):.0%}) came for free</b>: {why}. {steps:,}"
        f" step{' was' if steps == 1 else 's were'} taken, where every token but the first takes"
        " one without drafts. Brackets are steps. Point at a token, tap it, or reach it with Tab"
        " and the arrow keys (left and right by token, up and down by step)."
    )
    if trace.has_cache:
        replies = [answer for answer in answers if answer.cached is not None]
        wrong = sum(_changed(answer).changed + _changed(answer).missing > 0 for answer in replies)
        text += f" A semantic cache at {threshold:g} would have answered "
        text += (
            f"{len(replies)} of {len(answers)} by itself, {wrong} of them otherwise than the model."
            if replies
            else "none of them by itself."
        )
    return f"<p class=sum>{text}</p>"


def _article(number: int, answer: ShownAnswer, trace: ShownTrace, *, threshold: float) -> str:
    free = _num_free(answer)
    kinds = ["drafted" if free else "plain"]
    if answer.cached is not None:
        diff = _changed(answer)
        kinds.append("wrong" if diff.changed + diff.missing else "right")
    beside = _reply(answer, threshold) if trace.has_cache else ""
    said = "".join(_step(step) for step in answer.steps)
    return (
        f"<article class='answer {' '.join(kinds)}'>"
        f"<h3 dir=auto><span class=number>{number}</span>"
        f"{escaped(answer.question, _MAX_QUESTION)}</h3>{_counts(answer)}"
        f"<div class='pair{'' if beside else ' alone'}'><div>"
        f"<h4>The model's answer ({escaped(trace.method)})</h4>"
        f"<p class=said dir=auto{'' if answer.knows_drafts else ' data-partial'}>{said}</p>"
        f"</div>{beside}</div>"
        f"{step_bars(answer.bars, ours=trace.method, others=answer.others)}"
        f"{_near(answer.near)}{_prompt(answer)}</article>\n"
    )


def _counts(answer: ShownAnswer) -> str:
    by_source = answer.by_source()
    sources = ", ".join(
        f"{by_source[source]} {_LABELS[source]}"
        for source in SOURCES
        if by_source[source] and source != MODEL
    )
    free, steps = _num_free(answer), len(answer.steps) - 1
    return (
        f"<p class=sum>{_plural(answer.num_tokens, 'token')} in {_plural(steps, 'step')}; "
        f"<b>{free} came for free</b>{f' ({sources})' if sources else ''}</p>"
    )


def _num_free(answer: ShownAnswer) -> int:
    return answer.num_tokens - answer.by_source()[MODEL]


def _step(step: ShownStep) -> str:
    drafted = f" data-d={step.drafted}" if step.drafted else ""
    rejected = f' data-r="{escaped(step.rejected, _MAX_REJECTED)}"' if step.rejected else ""
    return f"<span class=s{drafted}{rejected}>{''.join(map(_token, step.tokens))}</span>"


def _token(token: ShownToken) -> str:
    classes = [CLASSES[token.source]]
    text = escaped(token.text)
    if token.is_end:
        classes.append("end")
        text = "end"
    elif not text:
        classes.append("part")
    elif text.startswith("\n"):
        classes.append("line")
    name = classes[0] if len(classes) == 1 else f"'{' '.join(classes)}'"
    near = f" data-a={token.near}" if token.near >= 0 else ""
    return f"<i class={name}{near}>{text}</i>"


def _changed(answer: ShownAnswer) -> ChangedWords:
    assert answer.cached is not None
    return changed_words(answer.cached.text, answer.text)


def _reply(answer: ShownAnswer, threshold: float) -> str:
    if answer.cached is None:
        text = f"A semantic cache at {threshold:g} has nothing as near, and asks the model as well."
        return f"<div><h4>A semantic cache</h4><p>{text}</p></div>"
    diff = _changed(answer)
    pieces = "".join(
        f"<mark>{escaped(piece.text)}</mark>" if piece.is_changed else escaped(piece.text)
        for piece in diff.pieces
    )
    pieces = re.sub("</mark>( ?)<mark>", r"\1", pieces)
    if diff.changed or diff.missing:
        verdict = f"{_plural(diff.changed, 'word')} of it the model does not say (marked)"
        if diff.missing:
            verdict += f", {_plural(diff.missing, 'word')} more of the model's it leaves out"
    else:
        verdict = "the same words as the model's"
    return (
        f"<div><h4>A semantic cache at {threshold:g} would have said</h4>"
        f"<p class=reply dir=auto>{pieces}</p>"
        f"<p class=sum>To <bdi>“{escaped(answer.cached.question, _MAX_NEAR)}”</bdi>, similarity"
        f" {answer.cached.similarity:.2f}: {verdict}.</p></div>"
    )


def _near(near: Sequence[SeenAnswer]) -> str:
    if not near:
        return ""
    rows = "".join(
        f"<li><bdi>“{escaped(one.question, _MAX_NEAR)}”</bdi> <small>similarity"
        f" {one.similarity:.2f}{_part(one)}</small></li>"
        for one in near
    )
    return (
        f"<details><summary>{_plural(len(near), 'near answer')} to draft from</summary>"
        f"<ol class=near-list>{rows}</ol></details>"
    )


def _part(near: SeenAnswer) -> str:
    return f", found for part {near.clause} of the question" if near.clause else ""


def _prompt(answer: ShownAnswer) -> str:
    is_whole = answer.prompt == answer.question and len(answer.question) <= _MAX_QUESTION
    if is_whole:
        return ""
    return (
        "<details><summary>The whole prompt</summary>"
        f"<p class=prompt dir=auto>{escaped(answer.prompt, _MAX_PROMPT)}</p></details>"
    )


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
