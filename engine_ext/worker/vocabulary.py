"""Which stored tokens a model can look up: who may write to a tier may have written anything."""

import numpy as np
from numpy.typing import NDArray


def are_tokens(token_ids: NDArray[np.int32], vocabulary_size: int) -> bool:
    """Return whether all of int32 [n] are tokens of the vocabulary.

    Example:
        >>> [are_tokens(np.array(ids, np.int32), 10) for ids in ([], [0, 9], [10], [-1])]
        [True, True, False, False]
    """
    # As unsigned numbers, negative ones are large: one look is enough.
    return len(token_ids) == 0 or int(token_ids.view(np.uint32).max()) < vocabulary_size
