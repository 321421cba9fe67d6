"""What the commands `reprise cache ...` share: the tier that a URL names, and words for counts."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.namespace import check_namespace
from reprise.retrieval.api.tier_url import INDEX_ENDING, redact, sqlite_path
from reprise.retrieval.host.private_files import unwritable
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.query.prompt_tokenizer import PromptTokenizer
from reprise.retrieval.search.embedding import LEXICAL, Embedder
from reprise.retrieval.tiers.sqlite_reader import SqliteReader
from reprise.retrieval.tiers.tier import Tier, TierError

Item = TypeVar("Item")
LINE_EVERY_S = 10.0
"""How often a command says how far it is, where nobody looks at a bar."""
_BATCH = 256
_BESIDE_SQLITE = ("-wal", "-shm", INDEX_ENDING)
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_progress = Console(stderr=True)

Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="REPRISE_RETRIEVAL__URL", help="sqlite:///path or redis://host:port/0"
    ),
]
Namespace = Annotated[str | None, typer.Option(help="Only this namespace; all without it.")]
EmbeddingModel = Annotated[
    str,
    typer.Option(
        "--embedding-model",
        envvar="REPRISE_RETRIEVAL__EMBEDDING_MODEL",
        help="The servers' embedding model.",
    ),
]


@contextmanager
def opened(url: str, *, may_create: bool = False, only_reads: bool = False) -> Iterator[Tier]:
    """Yield the tier of a URL; what goes wrong with it is one line.

    Args:
        url: Names the tier.
        may_create: Whether an SQLite file may be made.
        only_reads: Whether an SQLite file will do that cannot be written to.
    """
    try:
        tier: Tier | None = None
        path = sqlite_path(url) if url.startswith("sqlite:") else None
        if path is not None and path.exists() and (locked := unwritable(path)) is not None:
            if not only_reads:
                raise TierError(f"{locked} cannot be written to")
            tier = SqliteReader(path)
        # A mistyped path would read as an empty cache.
        elif path is not None and not may_create and not path.exists():
            raise ValueError(f"there is no SQLite file {path}")
        else:
            tier = open_tier(url)
        if tier is None:
            raise ValueError("memory:// lives in a running engine; name sqlite:// or redis://")
        try:
            yield tier
        finally:
            tier.close()
    except TierError as error:
        raise ValueError(f"{redact(url)}: {error}") from error


def check_reachable(url: str) -> None:
    """Have a tier that cannot be opened, or does not answer, refused; makes no file."""
    path = sqlite_path(url) if url.startswith("sqlite:") else None
    if path is not None and not path.exists():
        if not path.parent.is_dir():
            raise ValueError(f"{redact(url)}: there is no folder {path.parent}")
        if unwritable(path) is not None:
            raise ValueError(f"{redact(url)}: {path.parent} cannot be written to")
        return
    with opened(url) as tier:
        tier.namespaces()


def check_output(path: Path, url: str) -> None:
    """Have a file refused that cannot be made, or that is the tier itself: to write it would be
    the end of all answers."""
    if not path.resolve().parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    if not url.startswith("sqlite:") or not path.exists():
        return
    own = sqlite_path(url)
    for each in (own, *(own.with_name(own.name + ending) for ending in _BESIDE_SQLITE)):
        if each.exists() and path.samefile(each):
            raise ValueError(f"cannot write {path}: it belongs to the cache itself")


def namespaces_of(tier: Tier, namespace: str | None) -> list[str]:
    """Return the namespaces of a tier, or the one that is asked for.

    Raises:
        ValueError: It holds no answers: a mistyped name would read as an empty cache.
    """
    names = tier.namespaces()
    if namespace is None:
        return names
    if check_namespace(namespace) not in names:
        raise ValueError(no_answers_in(namespace))
    return [namespace]


def no_answers_in(namespace: str) -> str:
    """Say that a namespace holds no answers."""
    return (
        f"no answers in the namespace {namespace!r}: reprise cache stats shows those with answers"
    )


def all_answers(tier: Tier, namespace: str | None) -> Iterator[Answer]:
    """Return the answers of a tier, of one namespace or of all, read in pages.

    Raises:
        ValueError: See `namespaces_of`.
    """
    names = namespaces_of(tier, namespace)
    return (answer for name in names for answer in tier.answers(name))


def answers_at(tier: Tier, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Answer]:
    """Return the answers of these (namespace, id), as many as there are."""
    names: dict[str, list[str]] = {}
    for namespace, answer_id in keys:
        names.setdefault(namespace, []).append(answer_id)
    return {
        (answer.namespace, answer.answer_id): answer
        for namespace, answer_ids in names.items()
        for answer in tier.find(namespace, answer_ids)
    }


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Group items into batches of a size that tiers take well."""
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def tracked(items: Iterable[Item], doing: str) -> Iterable[Item]:
    """Show progress on standard error: a bar on a terminal, else a line now and then."""
    if _progress.is_terminal:
        return track(items, doing, console=_progress, transient=True)
    return _told(items, doing)


def _told(items: Iterable[Item], doing: str) -> Iterator[Item]:
    """Yield items, and say how far it is every few seconds, for files and pipes."""
    total = f" of {len(items)}" if isinstance(items, Sized) else ""
    began_s = said_s = time.monotonic()
    for number, item in enumerate(items):
        now_s = time.monotonic()
        if now_s - said_s >= LINE_EVERY_S:
            said_s = now_s
            typer.echo(f"{doing}: {number}{total} after {now_s - began_s:.0f} s", err=True)
        yield item


def answers_in_words(count: int) -> str:
    """Return a count of answers in words."""
    return f"{count} answer" if count == 1 else f"{count} answers"


def embedder_of(model: str) -> Embedder:
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


def tokenizer_at(name: str | None) -> PromptTokenizer | None:
    """Return the tokenizer of this name; None: none is named."""
    if name is None:
        return None
    try:
        return PromptTokenizer(name)
    except Exception as error:  # tokenizers raise what they like
        reason = str(error).splitlines()[0]
        if (folder := Path(name)).is_dir() and not any(folder.glob("tokenizer*")):
            reason = "the folder holds none"
        elif folder.is_absolute() and not folder.exists():
            reason = "there is no such folder"
        raise ValueError(f"no tokenizer at {name or repr(name)}: {reason}") from error


def seconds_of(age: str) -> float:
    """Return the seconds of an age such as 90s or 7d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", age)
    if match is None:
        raise ValueError(f"an age must look like 90s, 15m, 6h, 7d or 2w, got {age!r}")
    return float(match[1]) * _UNITS_S[match[2]]


def age_of(seconds: float) -> str:
    """Return an age in one word."""
    for unit in ("w", "d", "h", "m"):
        if seconds >= _UNITS_S[unit]:
            return f"{seconds / _UNITS_S[unit]:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
