"""Keys of exact hits with what made the answer in them: this engine's state, or a fingerprint."""

import hashlib
from typing import NamedTuple

from reprise.engine_ext.request.exact_hits import ExactKeys


class SharedKeys(NamedTuple):
    """The keys that a request's answer may lie under in a tier."""

    keys: ExactKeys
    state: str
    """What answers are stored with: a fingerprint, or the word that there is none."""
    verifiable: bool
    """Whether the model can verify what lies under them."""


def mixed(keys: ExactKeys, state: str) -> ExactKeys:
    """Return keys that are the same only if both those given and the state are."""
    return ExactKeys(
        *(hashlib.blake2b(state.encode(), key=key, digest_size=16).digest() for key in keys)
    )
