"""The commands `reprise cache ...`: what to do with the answers in a tier from outside."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.api.tier_url import INDEX_ENDING, beside_sqlite, redact
from reprise.retrieval.cli.answer_rows import row_of
from reprise.retrieval.cli.import_command import import_
from reprise.retrieval.cli.look_commands import list_, search, show
from reprise.retrieval.cli.search_index import NO_SEARCH, Search, fill_index, remove_from_index
from reprise.retrieval.cli.tables import print_table
from reprise.retrieval.cli.tier_access import (
    EmbeddingModel,
    Namespace,
    Url,
    age_of,
    all_answers,
    answers_at,
    answers_in_words,
    batches,
    check_output,
    embedder_of,
    namespaces_of,
    no_answers_in,
    opened,
    seconds_of,
    tokenizer_at,
    tracked,
)
from reprise.retrieval.host import steady_clock
from reprise.retrieval.host.private_files import replacing_file
from reprise.retrieval.query.turns import clip
from reprise.retrieval.search.embedding import DEFAULT_MODEL, Embedder
from reprise.retrieval.tiers.tier import Tier, TierDamagedError, TierError

app = typer.Typer(name="cache", help="Look at the cache of answers, fill it, clear it.")
app.command("import")(import_)
app.command("list")(list_)
app.command()(show)
app.command()(search)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="JSON Lines to write; - for standard output.")],
    url: Url,
    namespace: Namespace = None,
) -> None:
    """Write the answers in the cache to a file.

    Example: reprise cache export answers.jsonl --url redis://localhost:6379/0
    """
    to_stdout = str(file) == "-"
    if not to_stdout:
        check_output(file, url)
    with opened(url, only_reads=True) as tier:
        answers = all_answers(tier, namespace)
        # What was exported before is not lost to an empty cache.
        if (first := next(answers, None)) is None:
            raise ValueError(f"no answers to export in {redact(url)}")
        answers = chain([first], answers)
        if to_stdout:
            if sys.stdout is None:
                raise ValueError("standard output is closed")
            for answer in answers:
                sys.stdout.buffer.write(row_of(answer) + b"\n")
            return
        count = 0
        try:
            with replacing_file(file) as lines:
                for answer in tracked(answers, "Exporting"):
                    lines.write(row_of(answer) + b"\n")
                    count += 1
        except OSError as error:
            raise ValueError(f"cannot write {file}: {error.strerror}") from error
    typer.echo(f"{answers_in_words(count)} exported to {file}")


@app.command()
def warm(
    url: Url,
    namespace: Namespace = None,
    embedding_model: EmbeddingModel = DEFAULT_MODEL,
    search_index: Search = NO_SEARCH,
) -> None:
    """Compute the embeddings that are missing, so that replicas start warm; with --search, fill the
    index in Milvus.

    Example: reprise cache warm --url redis://localhost:6379/0
    """
    with opened(url) as tier:
        answers = all_answers(tier, namespace)
        embedder = embedder_of(embedding_model)
        count = without = 0
        missing: list[tuple[str, str]] = []
        for answer in answers:
            count += 1
            without += not answer.prompt_text
            if answer.prompt_text and answer.embedder != embedder.identity:
                missing.append((answer.namespace, answer.answer_id))
        embedded = sum(
            _embed(tier, batch, embedder) for batch in batches(tracked(missing, "Embedding"))
        )
        indexed = fill_index(search_index, all_answers(tier, namespace), embedder, tier=tier)
    held = count - without - len(missing)
    note = f"; {held} had been already" if held else ""
    note += f"; {without} have no text to embed" if without else ""
    note += f"; {answers_in_words(indexed)} in the search index" if indexed else ""
    typer.echo(f"{embedded} of {answers_in_words(count)} embedded by {embedder.identity}{note}")


def _embed(tier: Tier, keys: Sequence[tuple[str, str]], embedder: Embedder) -> int:
    """Have the answers of these (namespace, id) hold their vectors, those that are there when it is
    done; returns how many."""
    texts = {key: each.prompt_text for key, each in answers_at(tier, keys).items()}
    if not texts:
        return 0
    vectors = embedder.encode([clip(text) for text in texts.values()])
    vector_of = dict(zip(texts, vectors, strict=True))
    return tier.replace(
        [
            msgspec.structs.replace(
                answer,
                embedding=vector_of[key].astype("<f2").tobytes(),
                embedder=embedder.identity,
            )
            # Anew: it may have changed, and would be written as it was.
            for key, answer in answers_at(tier, list(texts)).items()
            if answer.prompt_text == texts[key]
        ]
    )


@app.command()
def stats(url: Url, namespace: Namespace = None) -> None:
    """Show what the cache holds, by namespace.

    Example: reprise cache stats --url sqlite:///var/cache/answers.sqlite
    """
    columns = ("namespace", "answers", "embedded", "tokens", "MiB", "oldest", "newest", "tokenizer")
    rows = []
    with opened(url, only_reads=True) as tier:
        names = namespaces_of(tier, namespace)
        for name in sorted(names):
            count = embedded = tokens = num_bytes = 0
            created: list[float] = []
            keys: set[str] = set()
            for answer in tier.answers(name):
                count += 1
                embedded += bool(answer.embedder)
                tokens += len(answer.response_token_ids)
                num_bytes += answer.num_bytes
                created.append(answer.created_s)
                keys.add(answer.tokenizer_key)
            if count:
                ages = [age_of(steady_clock.now_s() - s) for s in (min(created), max(created))]
                figures = (count, embedded, tokens, f"{num_bytes / 2**20:.1f}", *ages)
                key = f"{len(keys)} kinds" if len(keys) > 1 else keys.pop()[:8] or "unknown"
                rows.append((name or "(default)", *map(str, figures), key))
    if rows:
        print_table(columns, rows)
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
    search_index: Search = NO_SEARCH,
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
        older_than_s=None if older_than is None else seconds_of(older_than),
        model_key=model_key,
        everything=everything,
    )
    reader = None if tokenizer is None or prompt is None else tokenizer_at(tokenizer)
    textless: set[tuple[str, str]] = set()

    def text_of(answer: Answer) -> str:
        if answer.prompt_text:
            return answer.prompt_text
        if reader is None:
            textless.add((answer.namespace, answer.stored_id))
            return ""
        return reader.query_of(reader.decode(answer.prompt_token_ids.tolist()))

    gone: dict[tuple[str, str], None] = {}
    try:
        with opened(url) as tier:
            is_known = any(map(invalidation.covers, tier.namespaces()))
            # Also where it holds nothing: replicas may hold it in memory.
            tier.forget(invalidation, text_of=text_of, removed=gone)
            num_damaged = tier.num_damaged
    finally:  # also of what was removed before the tier failed
        remove_from_index(search_index, list(gone))
    removed = len(gone)
    if removed and (index := beside_sqlite(url, INDEX_ENDING)) is not None:
        # It holds vectors of what was removed. A running engine writes it anew.
        index.unlink(missing_ok=True)
    typer.echo(f"{answers_in_words(removed)} removed")
    if not is_known and (named := tenant if namespace is None else namespace) is not None:
        typer.echo(no_answers_in(named))
    if answer_id is not None and not removed:
        typer.echo("--id takes a whole id: reprise cache show prints it")
    if prompt is not None and textless:
        typer.echo(f"{answers_in_words(len(textless))} without text not compared: name --tokenizer")
    if num_damaged:
        typer.echo(f"{num_damaged} damaged not compared: see reprise cache check")


@app.command()
def check(url: Url) -> None:
    """Read every answer; exit status 1 if one is damaged, or the file that they are in.

    Example: reprise cache check --url redis://localhost:6379/0
    """
    harm = ""
    with opened(url, only_reads=True) as tier:
        began_s = time.perf_counter()
        try:
            tier.check()
        except TierDamagedError as error:
            harm = str(error)
        count = 0
        try:
            for _ in all_answers(tier, None):
                count += 1
        except TierError:
            if not harm:
                raise
        took_s = time.perf_counter() - began_s
        damaged = tier.num_damaged
    typer.echo(
        f"{answers_in_words(count)} readable, {damaged} damaged, in {took_s:.2f} s: {redact(url)}"
    )
    if harm:
        typer.echo(f"{harm}: export what is readable, and import it into another file")
    if damaged or harm:
        raise typer.Exit(1)
