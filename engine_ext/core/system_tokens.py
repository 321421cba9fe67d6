"""Keeps with a prompt how many of its leading tokens come from the chat's `system` role."""

from collections.abc import Mapping
from typing import Any

_KEY = "_reprise_num_system_tokens"


def set_num_system_tokens(prompt: dict[str, Any], num_tokens: int) -> None:
    """Note it in a prompt as vLLM's renderer returns it."""
    prompt[_KEY] = num_tokens


def num_system_tokens(prompt: Any) -> int:
    """Return what was noted; 0: nothing."""
    return int(prompt.get(_KEY, 0)) if isinstance(prompt, Mapping) else 0
