"""For how many drafted tokens of a batch model runner V2 has a graph of the whole step.

vLLM captures such graphs for steps in which every request has equally many tokens, of each length
that its schedule names, with its capture sizes rounded up to multiples of the length. For a step it
looks among those of the smallest number of tokens that the step fits, and no further: if none of
them is of the step's length, the step runs in pieces around every layer's attention, launched one
by one, and takes up to twice as long. The rule is that of `CudaGraphManager._init_candidates` and
`dispatch`, without LoRA and microbatches, which have the same sizes.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class GraphLengths:
    """Full graphs of one engine.

    Args:
        sizes: vLLM's capture sizes, in tokens.
        lengths: drafted tokens of a request, 0 among them if graphs without are captured.
        max_num_seqs: of the engine.
        any_lengths: a graph of so many tokens takes any lengths (vLLM's FULL).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        lengths: Sequence[int],
        *,
        max_num_seqs: int,
        any_lengths: bool = False,
    ) -> None:
        self._any_lengths = any_lengths
        found: defaultdict[int, set[int]] = defaultdict(set)
        for size in sizes:
            for tokens in [1] if any_lengths else [length + 1 for length in lengths]:
                rounded = -(-size // tokens) * tokens
                if rounded <= max(sizes) and (any_lengths or rounded // tokens <= max_num_seqs):
                    found[rounded].add(tokens)
        self._lengths = dict(found)
        self._sizes = sorted(found)

    def covers(self, batch: int, drafted: int, *, is_uniform: bool = True) -> bool:
        """Return whether a step of `batch` requests, each with `drafted` tokens, has one; if not
        `is_uniform`, some have fewer."""
        tokens = batch * (drafted + 1)
        place = bisect_left(self._sizes, tokens)
        if place == len(self._sizes):
            return False
        has_length = is_uniform and drafted + 1 in self._lengths[self._sizes[place]]
        return self._any_lengths or has_length


def graph_lengths(config: "VllmConfig", lengths: Sequence[int]) -> GraphLengths | None:
    """Return those of an engine that drafts one of `lengths`, or none; None: it has no graphs of
    whole steps, and all lengths are alike."""
    compilation = config.compilation_config
    mode, sizes = compilation.cudagraph_mode, compilation.cudagraph_capture_sizes
    if mode is None or not mode.has_full_cudagraphs() or not sizes:
        return None
    return GraphLengths(
        sizes,
        (0, *lengths),
        max_num_seqs=config.scheduler_config.max_num_seqs,
        any_lengths=not mode.separate_routine(),
    )
