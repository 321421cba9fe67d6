"""A near answer: an answer whose prompt is close to the request's in embedding space."""

from __future__ import annotations

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
