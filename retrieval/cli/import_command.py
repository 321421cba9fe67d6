"""`reprise cache import`: put the answers of a file into the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from reprise.retrieval.api.answer import Answer, content_id
from reprise.retrieval.api.namespace import check_namespace
from reprise.retrieval.api.tier_url import redact
from reprise.retrieval.chat_logs.exchanges import left_out_in_words
from reprise.retrieval.cli.answer_rows import read_rows
from reprise.retrieval.cli.tier_access import (
    Url,
    answers_at,
    answers_in_words,
    batches,
    check_reachable,
    opened,
    tokenizer_at,
    tracked,
)
from reprise.retrieval.query.tokenizer_key import vocabulary_key
from reprise.retrieval.tiers.tier import Tier

Keys = dict[tuple[str, str], str]


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="Exported answers, a trace, or a chat log of any kind; may be packed by gzip."
        ),
    ],
    url: Url,
    namespace: Annotated[
        str | None, typer.Option(help="Put all answers here; they are drafted from only.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            "--model",
            help="Folder or cached name of the model that is served: its tokenizer reads text, and "
            "names what answers were made with.",
        ),
    ] = None,
    tokenizer_key: Annotated[
        str | None, typer.Option(help="Names the tokenizer instead, whatever rows say.")
    ] = None,
) -> None:
    """Put the answers of a file into the cache.

    Chat logs are OpenAI-style messages, ShareGPT, requests with responses (OpenAI, LiteLLM), or
    vLLM's log of requests. What is there already is left alone, so that an import that was
    interrupted can be repeated.

    Example: reprise cache import answers.jsonl --model MODEL --url redis://localhost:6379/0
    """
    if namespace is not None:
        check_namespace(namespace)
    if tokenizer_key == "":
        raise ValueError("--tokenizer-key must not be empty: servers would ignore the answers")
    check_reachable(url)  # before minutes of reading
    empty: list[None] = []
    # Read first: a file with a bad line changes nothing.
    rows = read_rows(
        file,
        tokenizer=tokenizer_at(tokenizer),
        namespace=namespace,
        tokenizer_key=tokenizer_key,
        on_empty=lambda: empty.append(None),
    )
    answers = list(tracked(rows, "Reading"))
    without = f"; {left_out_in_words(len(empty))}" if empty else ""
    if not answers:
        raise ValueError(f"{file} holds no answers{without}")
    if tokenizer_key is None:
        answers = _named(answers, None if tokenizer is None else vocabulary_key(tokenizer))
    distinct = {(answer.namespace, answer.answer_id): answer for answer in answers}
    with opened(url, may_create=True) as tier:
        new = 0
        for batch in batches(tracked(distinct.values(), "Importing")):
            held = _held_of(batch, tier)
            if missing := [each for each in batch if not _is_held(each, held)]:
                tier.put(missing)
            new += len(batch) - len(held)
    counts = f"{new} new, {len(answers) - new} already known"
    typer.echo(f"{answers_in_words(len(answers))} imported into {redact(url)}: {counts}{without}")
    for key in sorted({answer.tokenizer_key for answer in answers} - {""}):
        typer.echo(
            f"Used by servers with this URL whose tokenizer has the key {key}; others say in their "
            "log that they ignore them. Look at them with reprise cache list."
        )


def _named(answers: Sequence[Answer], key: str | None) -> list[Answer]:
    """Return answers with the key of the tokenizer that they are made with.

    Raises:
        ValueError: For one of them it is not known, or it is another: no server would use it.
    """
    named = []
    for answer in answers:
        own = answer.tokenizer_key
        if not own and key is None:
            raise ValueError(
                "these rows do not say which tokenizer their answers were made with, so servers "
                "would ignore them: name the model that is served by --model, on this machine"
            )
        if own and key is not None and own != key:
            raise ValueError(
                f"answer {answer.answer_id} was made with another tokenizer ({own}) than that of "
                f"--model ({key}), so its servers would ignore it: leave --model out to keep it "
                "for others"
            )
        named.append(answer if own else msgspec.structs.replace(answer, tokenizer_key=key))
    return named


def _held_of(batch: Sequence[Answer], tier: Tier) -> Keys:
    """Return the tokenizer keys of those of a batch whose names are there already."""
    found = answers_at(tier, ((answer.namespace, answer.answer_id) for answer in batch))
    return {key: answer.tokenizer_key for key, answer in found.items()}


def _is_held(answer: Answer, held: Keys) -> bool:
    """Return whether the very same answer is there already; one with a name of its own may have
    changed since."""
    key = held.get((answer.namespace, answer.answer_id))
    own_name = content_id(
        answer.namespace, answer.model_key, answer.prompt_tokens, answer.response_tokens
    )
    return key == answer.tokenizer_key and answer.answer_id == own_name
