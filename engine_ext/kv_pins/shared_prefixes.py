"""Counts how many requests of a namespace have begun alike."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

_EVERY_BLOCK_TO = 64
_MAX_COUNTED = 1 << 15  # prefixes of all namespaces, those seen last
_STRIDE = 8  # beyond: what is found ends up to so many blocks too early, for an eighth of the time


class SharedPrefixes:
    """Finds the longest prefix that at least so many requests of one namespace have had.

    Blocks are known by vLLM's hashes, each of which covers all blocks before it, and the salt.

    Args:
        threshold: requests that must have begun alike; 0: nothing is counted or found.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._counts: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    def note(self, namespace: str, block_hashes: Sequence[bytes]) -> int:
        """Count a request.

        Args:
            namespace: of the request.
            block_hashes: of its prompt's full blocks, from the first on.

        Returns:
            How many leading blocks enough requests have had, this one included.
        """
        if not self._threshold:
            return 0
        longest = 0
        for depth in _depths(len(block_hashes)):
            key = namespace, block_hashes[depth - 1]
            count = self._counts.pop(key, 0) + 1
            self._counts[key] = count
            if count >= self._threshold:
                longest = depth
        while len(self._counts) > _MAX_COUNTED:
            self._counts.popitem(last=False)
        return longest

    def forget(self, covers: Callable[[str], bool] = lambda _: True) -> None:
        """Begin anew, in the namespaces for which `covers` holds."""
        for key in [key for key in self._counts if covers(key[0])]:
            del self._counts[key]


def _depths(num_blocks: int) -> Iterator[int]:
    yield from range(1, min(num_blocks, _EVERY_BLOCK_TO) + 1)
    yield from range(_EVERY_BLOCK_TO + _STRIDE, num_blocks + 1, _STRIDE)
