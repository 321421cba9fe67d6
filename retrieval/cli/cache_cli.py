"""The commands `reprise cache ...`: what to do with the answers in a tier from outside."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.api.namespace import check_namespace
from reprise.retrieval.api.tier_url import INDEX_ENDING, beside_sqlite, redact, sqlite_path
from reprise.retrieval.cli.answer_rows import read_rows, row_of
from reprise.retrieval.host.private_files import open_private
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.query.prompt_tokenizer import PromptTokenizer
from reprise.retrieval.query.turns import clip
from reprise.retrieval.search.embedding import LEXICAL, Embedder
from reprise.retrieval.tiers.tier import Tier, TierError

Item = TypeVar("Item")
app = typer.Typer(name="cache", help="Look into, fill and clear the cache of answers.")
_BATCH = 256
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_progress = Console(stderr=True)

Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="REPRISE_RETRIEVAL__URL", help="sqlite:///path or redis://host:port/0"
    ),
]
Namespace = Annotated[str | None, typer.Option(help="Only this namespace; all without it.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("import")
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
        str | None, typer.Option(help="Folder or file of the tokenizer, for rows of text.")
    ] = None,
    tokenizer_key: Annotated[
        str | None, typer.Option(help="Names the tokenizer, as the engine does.")
    ] = None,
) -> None:
    """Put the answers of a file into the cache.

    Chat logs are OpenAI-style messages, ShareGPT, requests with responses (OpenAI, LiteLLM), or
    vLLM's log of requests.

    Example: reprise cache import answers.jsonl --url sqlite:///var/cache/answers.sqlite
    """
    if namespace is not None:
        check_namespace(namespace)
    empty: list[None] = []
    # Read first: a file with a bad line changes nothing.
    answers = list(
        read_rows(
            file,
            tokenizer=_tokenizer(tokenizer),
            namespace=namespace,
            tokenizer_key=tokenizer_key,
            on_empty=lambda: empty.append(None),
        )
    )
    distinct = {(answer.namespace, answer.answer_id): answer for answer in answers}
    with _opened(url, may_create=True) as tier:
        held = {(a.namespace, a.answer_id) for a in _held_in(tier, {n for n, _ in distinct})}
        batches = list(_batches(distinct.values()))
        for batch in _tracked(batches, "Importing"):
            tier.put(batch)
    new = len(distinct.keys() - held)
    counts = f"{new} new, {len(answers) - new} already known"
    without = f"; {len(empty)} rows without a question or an answer left out" if empty else ""
    typer.echo(f"{_answers(len(answers))} imported into {redact(url)}: {counts}{without}")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="JSON Lines to write; - for standard output.")],
    url: Url,
    namespace: Namespace = None,
) -> None:
    """Write the answers in the cache to a file.

    Example: reprise cache export answers.jsonl --url redis://localhost:6379/0
    """
    with _opened(url) as tier:
        answers = _all_answers(tier, namespace)
        if str(file) == "-":
            for answer in answers:
                sys.stdout.buffer.write(row_of(answer) + b"\n")
            return
        count = 0
        try:
            with open_private(file) as lines:
                for answer in _tracked(answers, "Exporting"):
                    lines.write(row_of(answer) + b"\n")
                    count += 1
        except OSError as error:
            raise ValueError(f"cannot write {file}: {error.strerror}") from error
    typer.echo(f"{_answers(count)} exported to {file}")


@app.command()
def warm(
    url: Url,
    namespace: Namespace = None,
    model: Annotated[str, typer.Option(help="The embedding model.")] = "all-MiniLM-L6-v2",
) -> None:
    """Compute the embeddings that are missing, so that replicas start warm.

    Example: reprise cache warm --url redis://localhost:6379/0
    """
    with _opened(url) as tier:
        embedder = _embedder(model)
        answers = list(_all_answers(tier, namespace))
        missing = [a for a in answers if a.embedder != embedder.identity and a.prompt_text]
        batches = list(_batches(missing))
        for batch in _tracked(batches, "Embedding"):
            vectors = embedder.encode([clip(answer.prompt_text) for answer in batch])
            tier.put(
                [
                    msgspec.structs.replace(
                        answer,
                        embedding=vector.astype("<f2").tobytes(),
                        embedder=embedder.identity,
                    )
                    for answer, vector in zip(batch, vectors, strict=True)
                ]
            )
    without = sum(not a.prompt_text for a in answers)
    note = f"; {without} have no text to embed" if without else ""
    typer.echo(f"{len(missing)} of {_answers(len(answers))} embedded by {embedder.identity}{note}")


@app.command()
def stats(url: Url, namespace: Namespace = None) -> None:
    """Show what the cache holds, by namespace.

    Example: reprise cache stats --url sqlite:///var/cache/answers.sqlite
    """
    table = Table("namespace", "answers", "embedded", "tokens", "MiB", "oldest", "newest")
    with _opened(url) as tier:
        names = _namespaces(tier, namespace)
        for name in sorted(names):
            count = embedded = tokens = num_bytes = 0
            created: list[float] = []
            for answer in tier.answers(name):
                count += 1
                embedded += bool(answer.embedder)
                tokens += len(answer.response_tokens) // 4
                num_bytes += answer.num_bytes
                created.append(answer.created_s)
            if count:
                ages = [_age(time.time() - s) for s in (min(created), max(created))]
                figures = (count, embedded, tokens, f"{num_bytes / 2**20:.1f}", *ages)
                table.add_row(name or "(default)", *map(str, figures))
    if table.row_count:
        Console(width=120, soft_wrap=True).print(table)
    else:
        typer.echo(f"no answers in {redact(url)}")


@app.command()
def invalidate(
    url: Url,
    namespace: Annotated[str | None, typer.Option(help="Answers of this namespace.")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Answers of this namespace and of those below it.")
    ] = None,
    answer_id: Annotated[str | None, typer.Option("--id", help="The answer of this id.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Answers to this text, as it was typed: the last user turn.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(help="Older than 90s, 15m, 6h, 7d, 2w; 0s: all until now.")
    ] = None,
    model_key: Annotated[str | None, typer.Option(help="Answers of the model of this key.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="All answers.")] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder of the tokenizer, to find --prompt in answers without text."),
    ] = None,
) -> None:
    """Forget answers that meet all conditions, here and on all running replicas.

    Example: reprise cache invalidate --namespace acme --older-than 7d --url redis://localhost/0
    """
    conditions = (namespace, tenant, answer_id, prompt, older_than, model_key)
    if not everything and all(condition is None for condition in conditions):
        raise ValueError(
            "invalidate needs --id, --prompt, --namespace, --tenant, --older-than, --model-key or "
            "--everything"
        )
    invalidation = Invalidation.create(
        namespace=namespace,
        tenant=tenant,
        answer_id=answer_id,
        prompt=prompt,
        older_than_s=None if older_than is None else _seconds(older_than),
        model_key=model_key,
        everything=everything,
    )
    reader = None if tokenizer is None or prompt is None else _tokenizer(tokenizer)
    num_textless = 0

    def text_of(answer: Answer) -> str:
        nonlocal num_textless
        if answer.prompt_text or reader is None:
            num_textless += not answer.prompt_text
            return answer.prompt_text
        return reader.query_of(reader.decode(answer.prompt_token_ids.tolist()))

    with _opened(url) as tier:
        removed = len(tier.forget(invalidation, text_of=text_of))
        num_damaged = tier.num_damaged
    if removed and (index := beside_sqlite(url, INDEX_ENDING)) is not None:
        # It holds vectors of what was removed. A running engine writes it anew.
        index.unlink(missing_ok=True)
    typer.echo(f"{_answers(removed)} removed")
    if prompt is not None and num_textless:
        typer.echo(f"{_answers(num_textless)} without text not compared: name --tokenizer")
    if num_damaged:
        typer.echo(f"{num_damaged} damaged not compared: see reprise cache check")


@app.command()
def check(url: Url) -> None:
    """Read every answer; exit status 1 if one is damaged.

    Example: reprise cache check --url redis://localhost:6379/0
    """
    with _opened(url) as tier:
        began_s = time.perf_counter()
        count = sum(1 for _ in _all_answers(tier, None))
        took_s = time.perf_counter() - began_s
        damaged = tier.num_damaged
    typer.echo(f"{_answers(count)} readable, {damaged} damaged, in {took_s:.2f} s: {redact(url)}")
    if damaged:
        raise typer.Exit(1)


@contextmanager
def _opened(url: str, *, may_create: bool = False) -> Iterator[Tier]:
    """Yield the tier of a URL; what goes wrong with it is one line."""
    try:
        path = sqlite_path(url) if url.startswith("sqlite:") else None
        # A mistyped path would read as an empty cache.
        if path is not None and not may_create and not path.exists():
            raise ValueError(f"there is no SQLite file {path}")
        tier = open_tier(url)
        if tier is None:
            raise ValueError("memory:// lives in a running engine; name sqlite:// or redis://")
        try:
            yield tier
        finally:
            tier.close()
    except TierError as error:
        raise ValueError(f"{redact(url)}: {error}") from error


def _namespaces(tier: Tier, namespace: str | None) -> list[str]:
    return tier.namespaces() if namespace is None else [check_namespace(namespace)]


def _all_answers(tier: Tier, namespace: str | None) -> Iterator[Answer]:
    for name in _namespaces(tier, namespace):
        yield from tier.answers(name)


def _held_in(tier: Tier, namespaces: Iterable[str]) -> Iterator[Answer]:
    for name in namespaces:
        yield from tier.answers(name)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _tracked(items: Iterable[Item], doing: str) -> Iterable[Item]:
    """Show progress to a person, and nothing to a pipe."""
    hidden = not _progress.is_terminal
    return track(items, doing, console=_progress, transient=True, disable=hidden)


def _answers(count: int) -> str:
    return f"{count} answer" if count == 1 else f"{count} answers"


def _embedder(model: str) -> Embedder:
    """Return the model itself: what stands in for it would overwrite better embeddings."""
    announcing = logging.getLogger(Embedder.__module__)
    announcing.disabled = True  # the error below says it
    try:
        embedder = Embedder(model)
    finally:
        announcing.disabled = False
    if embedder.name == LEXICAL and model != LEXICAL:
        raise ValueError(f"no embedding model {model!r}: neither a folder, installed nor cached")
    return embedder


def _tokenizer(name: str | None) -> PromptTokenizer | None:
    if name is None:
        return None
    try:
        return PromptTokenizer(name)
    except Exception as error:  # tokenizers raise what they like
        reason = str(error).splitlines()[0]
        raise ValueError(f"no tokenizer at {name}: {reason}") from error


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", age)
    if match is None:
        raise ValueError(f"an age must look like 90s, 15m, 6h, 7d or 2w, got {age!r}")
    return float(match[1]) * _UNITS_S[match[2]]


def _age(seconds: float) -> str:
    for unit in ("w", "d", "h", "m"):
        if seconds >= _UNITS_S[unit]:
            return f"{seconds / _UNITS_S[unit]:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
