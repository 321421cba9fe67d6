"""What an owner hands to its retrieval process, as JSON on standard input."""

from __future__ import annotations

import msgspec


class LaunchConfig(msgspec.Struct, frozen=True):
    """What the owner hands to the process at its start."""

    config: dict[str, object]
    address: str
    block_prefix: str
    owner_pid: int
    tokenizer: str | None = None
    tokenizer_key: str = ""
    is_first: bool = True
    """Of a row of starts: what fails at each of them is logged once."""
