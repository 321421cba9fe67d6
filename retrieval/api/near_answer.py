"""A near answer: an answer whose prompt is close to the request's in embedding space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class NearAnswer:
    """What a request may draft from, best first in the lists that hold it."""

    answer_id: str
    similarity: float
    """Cosine in [-1, 1] between the query and the answer's prompt."""
    prompt_token_ids: NDArray[np.int32]
    """int32 [p]"""
    response_token_ids: NDArray[np.int32]
    """int32 [r]"""
    clause: int = 0
    """0: found for the whole prompt; 1..: for that clause of it."""
    namespace: str = ""

    @property
    def kind(self) -> Literal["whole", "clause"]:
        """Whether the whole prompt or one of its clauses found it."""
        return "whole" if self.clause == 0 else "clause"


def require_namespace(near_answers: Iterable[NearAnswer], namespace: str) -> None:
    """Let near answers pass that are of the namespace of the request they were found for.

    Raises:
        ValueError: One is of another.
    """
    if any(each.namespace != namespace for each in near_answers):
        raise ValueError("a near answer is of another namespace than its request")
