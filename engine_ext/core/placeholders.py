"""Tokens that vLLM does not know yet."""

from collections.abc import Sequence

PLACEHOLDER = -1
"""What vLLM keeps in place of a token that it does not know yet."""


def num_known(output_token_ids: Sequence[int]) -> int:
    """Count a request's tokens before the placeholders at the end."""
    count = len(output_token_ids)
    while count > 0 and output_token_ids[count - 1] == PLACEHOLDER:
        count -= 1
    return count
