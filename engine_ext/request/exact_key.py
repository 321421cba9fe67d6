"""Makes the key of an exact hit: of everything that can change the output, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from reprise.retrieval.api.answer import digest
from reprise.retrieval.api.namespace import check_namespace

_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
# Part of every key: keys of another layout never match.
_LAYOUT = b"reprise-exact-2"


def exact_key(
    *,
    namespace: str,
    model_key: str,
    prompt_token_ids: Sequence[int] | NDArray[np.integer],  # [p]
    sampling: Mapping[str, Any],
) -> bytes:
    """Return 16 bytes that two requests share only if their answers are the same.

    `sampling` holds the fields that change the output, by name.
    Values of different types (1, 1.0, True) give different keys: that costs a hit at worst.

    Raises:
        ValueError: A bad namespace, token ids that are no integers, or a sampling value that has
            no encoding.
    """
    if isinstance(prompt_token_ids, np.ndarray):
        prompt_token_ids = prompt_token_ids.tolist()
    try:
        # A third of the time that an array takes to be made of a list: prompts of 128k tokens are
        # keyed on an event loop.
        prompt = _ENCODER.encode(prompt_token_ids)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"token ids must be plain integers, got {error}") from error
    try:
        fields = _ENCODER.encode(dict(sampling))
    except (TypeError, ValueError) as error:
        raise ValueError(f"sampling fields must be plain values, got {error}") from error
    return digest(
        _LAYOUT,
        check_namespace(namespace).encode(),
        model_key.encode(),
        prompt,
        fields,
    )
