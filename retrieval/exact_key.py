"""The key of an exact hit: everything that can change the output, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from numpy.typing import ArrayLike

from .answer import digest, token_bytes
from .namespace import check_namespace

_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
# Part of every key: keys of another layout never match.
_LAYOUT = b"reprise-exact-1"


def exact_key(
    *,
    namespace: str,
    model_key: str,
    prompt_token_ids: ArrayLike,  # [p] integers
    sampling: Mapping[str, Any],
) -> bytes:
    """16 bytes that two requests share only if their answers are the same.

    `sampling` holds the fields that change the output, by name.
    Values of different types (1, 1.0, True) give different keys: that costs a hit at worst.

    Raises:
        ValueError: A bad namespace, bad token ids, or a sampling value that has no encoding.
    """
    try:
        fields = _ENCODER.encode(dict(sampling))
    except (TypeError, ValueError) as error:
        raise ValueError(f"sampling fields must be plain values, got {error}") from error
    return digest(
        _LAYOUT,
        check_namespace(namespace).encode(),
        model_key.encode(),
        token_bytes(prompt_token_ids),
        fields,
    )
