"""What drafting needs to know of a near answer."""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
TokenIds = npt.ArrayLike
"""Token ids in any form that becomes an int32 array [n]."""


class NearAnswer(Protocol):
    """An answer whose prompt is close in embedding space; retrieval's class fits by structure."""

    @property
    def answer_id(self) -> str: ...

    @property
    def similarity(self) -> float:
        """Cosine in [-1, 1]."""
        ...

    @property
    def prompt_token_ids(self) -> Any:
        """int32 [p]"""
        ...

    @property
    def response_token_ids(self) -> Any:
        """int32 [r]"""
        ...

    @property
    def clause(self) -> int:
        """0: found for the whole prompt; 1, 2, ...: for that clause of it."""
        ...


class PlainNearAnswer(NamedTuple):
    """The simplest near answer."""

    answer_id: str
    similarity: float
    prompt_token_ids: Any
    response_token_ids: Any
    clause: int = 0


def as_token_ids(values: TokenIds, what: str) -> IntArray:
    """Copy `values` into a contiguous int32 array [n].

    Raises:
        ValueError: if `values` is not a flat sequence of token ids that fit int32 and are >= 0.
    """
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{what}: expected a flat sequence of integers, "
            f"came {array.dtype} with shape {array.shape}"
        )
    if int(array.min()) < 0 or int(array.max()) > 2**31 - 2:
        raise ValueError(f"{what}: expected token ids in [0, 2**31 - 2], came one outside")
    return np.array(array, np.int32)


def are_tokens(token_ids: IntArray, vocabulary_size: int) -> bool:
    """Return whether all of int32 [n] are tokens of the vocabulary, which a model can look up.

    Example:
        >>> [are_tokens(np.array(ids, np.int32), 10) for ids in ([], [0, 9], [10], [-1])]
        [True, True, False, False]
    """
    # As unsigned numbers, negative ones are large: one look is enough.
    return len(token_ids) == 0 or int(token_ids.view(np.uint32).max()) < vocabulary_size
