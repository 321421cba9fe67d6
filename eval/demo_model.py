"""The demo model: a small Llama, trained on the demo trace, cached under its recipe's hash."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from rich.console import Console

from reprise.eval.demo_trace import make_demo_trace, training_rows

_HASHED_TRAINING_ROWS = 1000


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what the demo model is. Change a value and a new model is trained."""

    version: int = 2
    """Goes up with every change to how tokenizer or model are trained."""
    seed: int = 0
    vocab_size: int = 1536
    max_tokens: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 3
    num_heads: int = 3
    steps: int = 800
    rows_per_step: int = 16
    matrix_lr: float = 0.02
    vector_lr: float = 3e-3
    dtype: str = "bfloat16"


RECIPE = Recipe()


def demo_model_path(recipe: Recipe = RECIPE) -> Path:
    """Folder of the demo model, with tokenizer and chat template; trains it if it is not there.

    Training takes a few minutes on two cores, shows a progress bar on standard error and happens
    once: the result is kept under the user's cache directory. Processes that ask at the same time
    wait for the one that trains.
    """
    from reprise.eval.demo_training import train_demo_model

    return _cached(
        f"demo-model-{_recipe_hash(recipe)}",
        lambda folder: train_demo_model(recipe, folder),
        doing="training the demo model",
    )


def demo_tokenizer_path(recipe: Recipe = RECIPE) -> Path:
    """The demo model's tokenizer file alone, which takes a second to make instead of minutes."""
    from reprise.eval.demo_training import train_demo_tokenizer

    def build(folder: Path) -> None:
        train_demo_tokenizer(recipe).save(str(folder / "tokenizer.json"))

    name = f"demo-tokenizer-{_recipe_hash(recipe)}"
    return _cached(name, build, doing="training the demo tokenizer") / "tokenizer.json"


def cache_folder() -> Path:
    """Where Reprise keeps what it made for this user."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "reprise"


def _recipe_hash(recipe: Recipe) -> str:
    digest = hashlib.sha256(msgspec.json.encode(recipe))
    rows = itertools.chain(
        make_demo_trace(recipe.seed),
        itertools.islice(training_rows(recipe.seed), _HASHED_TRAINING_ROWS),
    )
    for row in rows:
        digest.update(msgspec.json.encode(row))
    return digest.hexdigest()[:12]


def _cached(name: str, build: Callable[[Path], None], *, doing: str) -> Path:
    """Folder `name` of the cache; made by `build` in a folder beside it, then renamed, so that it
    is there whole or not at all."""
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder.with_suffix(".lock"), doing=doing):
        if folder.is_dir():
            return folder
        scratch = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder.parent))
        try:
            build(scratch)
            scratch.chmod(0o755)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _exclusive(path: Path, *, doing: str) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it even if this process is killed."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Console(stderr=True).print(f"Waiting for another process that is {doing} ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Train it if need be, and print where it is."""
    print(demo_model_path())


if __name__ == "__main__":
    main()
