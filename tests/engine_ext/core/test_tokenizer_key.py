"""A tokenizer's key is that of its vocabulary, wherever it lies."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprise.engine_ext.core.model_key import tokenizer_key_of
from reprise.retrieval.query.tokenizer_key import vocabulary_key


def test_a_moved_folder_keeps_its_key_and_another_vocabulary_has_another(
    demo_model: Path, tmp_path: Path
) -> None:
    key = vocabulary_key(str(demo_model))
    assert key is not None
    assert len(key) == 32
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(demo_model / "tokenizer.json", moved)
    assert vocabulary_key(str(moved)) == key
    assert vocabulary_key(str(moved / "tokenizer.json")) == key
    (moved / "tokenizer.json").write_text("{}")
    assert vocabulary_key(str(moved)) != key
    (moved / "tekken.json").write_text("[]")
    assert vocabulary_key(str(moved)) != vocabulary_key(str(moved), mode="mistral")


@pytest.mark.parametrize("name", ["nobody/nothing", "a/b/c", "/no/such", ""])
def test_a_tokenizer_that_is_not_here_has_none(name: str) -> None:
    assert vocabulary_key(name) is None


def test_an_engine_has_the_key_that_import_finds(demo_model: Path) -> None:
    def key_of(tokenizer: str) -> str:
        model = {"tokenizer": tokenizer, "tokenizer_revision": None, "tokenizer_mode": "hf"}
        config: Any = SimpleNamespace(model_config=SimpleNamespace(**model))
        return tokenizer_key_of(config)

    assert key_of(str(demo_model)) == vocabulary_key(str(demo_model))
    assert key_of(f"{demo_model}/") == key_of(str(demo_model))
    assert key_of("nobody/nothing") != key_of("nobody/else")
