"""The demo model: a small Llama, trained on the demo trace.

What the current recipe makes lies beside this file, so that everybody has the same weights:
training gives others on each kind of processor. Only a recipe that somebody has changed is trained,
and cached under its hash. After such a change,
`python -m reprise.eval.demo_data.demo_model --bundle` trains it and puts it there.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from reprise.eval.demo_data.cached_folder import cached_folder
from reprise.eval.demo_data.demo_recipe import RECIPE, Recipe
from reprise.eval.demo_data.demo_trace import make_demo_trace, training_rows
from reprise.eval.report.command_line import run_command

DEMO_DTYPE = "float32"
"""What engines compute it in where answers are compared. In bfloat16 two tokens can tie, and which
of them wins depends on what else is in the batch and on the processor, drafts or not."""
BUNDLED = Path(__file__).resolve().parent / "demo_model_files"
"""In a checkout; the installed package leaves it out."""
_HASH_FILE = "recipe_hash"
_HASHED_TRAINING_ROWS = 1000


def demo_model_path(recipe: Recipe = RECIPE) -> Path:
    """Folder of the demo model, with tokenizer and chat template: the bundled one, if it is of this
    recipe, else one that is trained if it is not there.

    Training takes a few minutes on two cores, shows a progress bar on standard error and happens
    once: the result is kept under the user's cache directory. Processes that ask at the same time
    wait for the one that trains.
    """
    recipe_hash = _recipe_hash(recipe)
    if recipe_hash == bundled_recipe_hash():
        return BUNDLED
    from reprise.eval.demo_data.demo_training import train_demo_model  # with torch, so late

    return cached_folder(
        f"demo-model-{recipe_hash}",
        lambda folder: train_demo_model(recipe, folder),
        doing="training the demo model",
    )


def demo_tokenizer_path(recipe: Recipe = RECIPE) -> Path:
    """The demo model's tokenizer file alone, which takes a second to make instead of minutes."""
    recipe_hash = _recipe_hash(recipe)
    if recipe_hash == bundled_recipe_hash():
        return BUNDLED / "tokenizer.json"
    from reprise.eval.demo_data.demo_training import train_demo_tokenizer

    def build(folder: Path) -> None:
        train_demo_tokenizer(recipe).save(str(folder / "tokenizer.json"))

    name = f"demo-tokenizer-{recipe_hash}"
    return cached_folder(name, build, doing="training the demo tokenizer") / "tokenizer.json"


def bundled_recipe_hash() -> str | None:
    """Of which recipe the bundled model is; None: there is none."""
    file = BUNDLED / _HASH_FILE
    return file.read_text().strip() if file.is_file() else None


def bundle() -> Path:
    """Have the current recipe's model lie beside this file, training it if need be; its folder."""
    trained = demo_model_path()
    if trained != BUNDLED:
        shutil.rmtree(BUNDLED, ignore_errors=True)
        shutil.copytree(trained, BUNDLED)
        (BUNDLED / _HASH_FILE).write_text(_recipe_hash(RECIPE) + "\n")
    return BUNDLED


def _recipe_hash(recipe: Recipe) -> str:
    digest = hashlib.sha256(msgspec.json.encode(recipe))
    rows = itertools.chain(
        make_demo_trace(recipe.seed),
        itertools.islice(training_rows(recipe.seed), _HASHED_TRAINING_ROWS),
    )
    for row in rows:
        digest.update(msgspec.json.encode(row))
    return digest.hexdigest()[:12]


def main(
    into_checkout: Annotated[
        bool, typer.Option("--bundle", help="Put it into this checkout, for everybody.")
    ] = False,
) -> None:
    """Train the demo model if need be, and print where it is."""
    print(bundle() if into_checkout else demo_model_path())


if __name__ == "__main__":
    sys.exit(run_command(main, name="demo_model.py"))
