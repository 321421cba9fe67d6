"""`reprise cache list`, `show` and `search`: look at the answers in a tier."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Annotated

import msgspec
import numpy as np
import typer

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.namespace import is_encodable
from reprise.retrieval.api.tier_url import redact
from reprise.retrieval.cli.tables import plain, print_table
from reprise.retrieval.cli.tier_access import (
    EmbeddingModel,
    Namespace,
    Url,
    age_of,
    all_answers,
    batches,
    embedder_of,
    opened,
    tracked,
)
from reprise.retrieval.host import steady_clock
from reprise.retrieval.query.turns import clip
from reprise.retrieval.search.embedding import DEFAULT_MODEL
from reprise.retrieval.search.near_search import unpack

_SHOWN_CHARACTERS = 48
_ID_CHARACTERS = 12
_COLUMNS = ("id", "namespace", "age", "uses", "tokens", "prompt", "answer")
Limit = Annotated[int, typer.Option(min=1, help="Show at most so many.")]


def list_(url: Url, namespace: Namespace = None, limit: Limit = 20) -> None:
    """List answers, the newest first.

    Example: reprise cache list --url redis://localhost:6379/0 --limit 50
    """
    with opened(url, only_reads=True) as tier:
        count = 0

        def counted() -> Iterator[Answer]:
            nonlocal count
            for answer in all_answers(tier, namespace):
                count += 1
                yield answer

        newest = heapq.nlargest(limit, counted(), key=lambda answer: answer.created_s)
    if not newest:
        typer.echo(f"no answers in {redact(url)}")
        return
    print_table(_COLUMNS, map(_cells, newest))
    if count > len(newest):
        typer.echo(f"{len(newest)} of {count}: name --limit for more")


def show(
    answer_id: Annotated[str, typer.Argument(help="The answer's id, or how it begins.")],
    url: Url,
    namespace: Namespace = None,
) -> None:
    """Show one answer with all that is known of it, as JSON.

    Example: reprise cache show 3f2a91c07b44 --url redis://localhost:6379/0
    """
    if not answer_id:
        raise ValueError("show needs an id, or how it begins: reprise cache list has them")
    with opened(url, only_reads=True) as tier:
        found = [a for a in all_answers(tier, namespace) if a.answer_id.startswith(answer_id)]
    exact = [answer for answer in found if answer.answer_id == answer_id]
    chosen = exact or found
    if not chosen:
        raise ValueError(f"no answer whose id begins with {answer_id} in {redact(url)}")
    if len({answer.answer_id for answer in chosen}) > 1:
        raise ValueError(f"{len(chosen)} answers have ids that begin with {answer_id}: name more")
    for answer in chosen:  # one id may be in several namespaces
        known = {
            "answer_id": answer.answer_id,
            "namespace": answer.namespace,
            "prompt": answer.prompt_text,
            "response": answer.response_text,
            "prompt_tokens": len(answer.prompt_token_ids),
            "response_tokens": len(answer.response_token_ids),
            "finish_reason": answer.finish_reason,
            "created_s": answer.created_s,
            "uses": answer.uses,
            "accepted_tokens": answer.accepted_tokens,
            "model_key": answer.model_key,
            "tokenizer_key": answer.tokenizer_key,
            "embedder": answer.embedder,
        }
        typer.echo(plain(msgspec.json.format(msgspec.json.encode(known), indent=2).decode()))


def search(
    text: Annotated[str, typer.Argument(help="A question, as a person types it.")],
    url: Url,
    namespace: Namespace = None,
    limit: Limit = 10,
    embedding_model: EmbeddingModel = DEFAULT_MODEL,
) -> None:
    """Find the answers to questions that mean the same, as a server would.

    Example: reprise cache search "How do I cancel?" --url redis://localhost:6379/0
    """
    if not text.strip():
        raise ValueError("search needs a question")
    if not is_encodable(text):
        raise ValueError("search needs a question that UTF-8 can encode")
    with opened(url, only_reads=True) as tier:
        answers = all_answers(tier, namespace)
        embedder = embedder_of(embedding_model)
        [wanted] = embedder.encode([clip(text)])
        best: list[tuple[float, int, Answer]] = []
        order = 0
        is_told = False
        for batch in batches(tracked(answers, "Comparing")):
            rows = np.zeros((len(batch), embedder.dim), dtype=np.float32)
            bare = []
            for i, answer in enumerate(batch):
                is_alike = answer.embedder == embedder.identity
                vector = unpack(answer.embedding, embedder.dim) if is_alike else None
                if vector is None:
                    bare.append(i)
                else:
                    rows[i] = vector
            if bare:
                if not is_told:
                    is_told = True
                    typer.echo(
                        f"some answers are not embedded by {embedder.identity} yet, and are now, "
                        "for this search alone: reprise cache warm keeps it",
                        err=True,
                    )
                rows[bare] = embedder.encode([clip(batch[i].prompt_text) for i in bare])
            for similarity, answer in zip(rows @ wanted, batch, strict=True):
                order += 1
                best.append((float(similarity), -order, answer))
            best = heapq.nlargest(limit, best)
    if not best:
        typer.echo(f"no answers in {redact(url)}")
        return
    found = [(f"{similarity:.3f}", *_cells(answer)) for similarity, _, answer in best]
    print_table(("similarity", *_COLUMNS), found)


def _cells(answer: Answer) -> tuple[str, ...]:
    return (
        answer.answer_id[:_ID_CHARACTERS],
        answer.namespace or "(default)",
        age_of(steady_clock.now_s() - answer.created_s),
        str(answer.uses),
        str(len(answer.response_token_ids)),
        _shortened(answer.prompt_text),
        _shortened(answer.response_text),
    )


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"
