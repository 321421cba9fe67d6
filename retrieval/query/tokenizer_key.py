"""Names a tokenizer by its vocabulary, so that whoever has the same one finds the same name."""

from __future__ import annotations

import hashlib
from pathlib import Path

# The file that says which text has which id; the first that is there.
_VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model", "tekken.json", "spiece.model"),
    *("vocab.json", "vocab.txt"),
)
_PIECE_BYTES = 1 << 20


def vocabulary_key(name: str, *, revision: str | None = None, mode: str = "auto") -> str | None:
    """Return 32 hexadecimal digits of the vocabulary of a tokenizer on this machine.

    Args:
        name: A folder, a file of the tokenizer, or the name of a cached model.
        revision: Of that model.
        mode: As vLLM's `--tokenizer-mode`: `mistral` reads another file first.

    Returns:
        None: There is no such file here, as where the tokenizer is part of a GGUF file.
    """
    file = _vocabulary_file(name, revision, mode)
    if file is None:
        return None
    key = hashlib.blake2b(digest_size=16)
    try:
        with file.open("rb") as content:
            while piece := content.read(_PIECE_BYTES):
                key.update(piece)
    except OSError:
        return None
    return key.hexdigest()


def _vocabulary_file(name: str, revision: str | None, mode: str) -> Path | None:
    path = Path(name)
    if path.is_file():
        return path if path.suffix in (".json", ".model", ".txt") else None
    names = ("tekken.json", *_VOCABULARIES) if mode == "mistral" else _VOCABULARIES
    if path.is_dir():
        return next((path / each for each in names if (path / each).is_file()), None)
    from huggingface_hub import try_to_load_from_cache

    for each in names:
        try:
            found = try_to_load_from_cache(name, each, revision=revision)
        except ValueError:  # no name that a hub could have
            return None
        if isinstance(found, str):
            return Path(found)
    return None
