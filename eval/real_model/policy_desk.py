"""A support desk for a model that answers from what it is given, made from a seed.

The questions are those of the demo's desk. Before each stand, as people have it, a system prompt
and the articles that retrieval would have found: that of the topic asked about, another of its
kind, and what holds for all of the kind. Articles have brackets where an answer has a number of the
customer's.

    python -m reprise.eval.real_model.policy_desk --out desk.jsonl
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from reprise.eval.demo_data.demo_topics import SHARED, TOPICS, Topic
from reprise.eval.demo_data.demo_trace import all_wordings, support_row
from reprise.eval.replay.traces import TraceRow, save_trace
from reprise.eval.report.command_line import InputError, run_command

SYSTEM_PROMPT = (
    "You are the support desk of a mail-order shop. Answer the customer politely in two to five"
    " sentences. Use only the articles below; where an article has brackets, put what the customer"
    " said."
)
_SLOTS = {"order": "[order number]", "amount": "[amount]", "date": "[date]"}


def make_policy_desk(
    *, topics: int = 20, warm_per_topic: int = 2, timed_per_topic: int = 2, seed: int = 0
) -> list[TraceRow]:
    """Return warm rows, then timed ones, both mixed; no two rows of a topic have the same words.

    The responses are the demo desk's: a model that is served gives its own.
    """
    rng = random.Random(f"policy desk {seed}")
    warm: list[TraceRow] = []
    timed: list[TraceRow] = []
    for topic in rng.sample(TOPICS, topics):
        wordings = rng.sample(all_wordings(), warm_per_topic + timed_per_topic)
        rows = [_with_articles(rng, topic, support_row(rng, topic, one)) for one in wordings]
        warm += rows[:warm_per_topic]
        timed += rows[warm_per_topic:]
    rng.shuffle(warm)
    rng.shuffle(timed)
    return [
        msgspec.structs.replace(row, id=f"desk-{number}", warm=number < len(warm))
        for number, row in enumerate(warm + timed)
    ]


def _with_articles(rng: random.Random, topic: Topic, row: TraceRow) -> TraceRow:
    others = [one for one in TOPICS if one.category == topic.category and one is not topic]
    articles = [topic.body, rng.choice(others).body]
    rng.shuffle(articles)
    articles.append(SHARED[topic.category])
    system = "\n\n".join([SYSTEM_PROMPT, *(article.format(**_SLOTS) for article in articles)])
    return msgspec.structs.replace(
        row,
        prompt=f"system: {system}\n\nuser: {row.prompt}",
        query=row.prompt,
        messages=[
            {"role": "system", "content": system},
            {"role": "user", "content": row.prompt},
        ],
    )


def main(
    out: Annotated[Path, typer.Option(help="The trace to write.")],
    topics: Annotated[int, typer.Option(min=1, max=len(TOPICS), help="Of so many.")] = 20,
    warm: Annotated[int, typer.Option(min=1, help="Earlier questions of each.")] = 2,
    timed: Annotated[int, typer.Option(min=1, help="Timed questions of each.")] = 2,
    seed: Annotated[int, typer.Option(help="Of whatever is random.")] = 0,
) -> None:
    """Write the support desk as a trace, for acceptance_rate.py and the like."""
    if not out.resolve().parent.is_dir():
        raise InputError(f"{out}: its folder does not exist")
    rows = make_policy_desk(topics=topics, warm_per_topic=warm, timed_per_topic=timed, seed=seed)
    save_trace(out, rows)
    print(f"{len(rows)} rows in {out}")


if __name__ == "__main__":
    sys.exit(run_command(main, name="policy_desk.py"))
