"""Sizes that vLLM captures graphs for by default, in tokens; a step's are padded to one of them."""

CAPTURED = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
