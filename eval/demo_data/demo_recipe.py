"""What the demo model is made of."""

from __future__ import annotations

import msgspec


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
