"""A server with few blocks that pins prefixes, and what evicts those that are not pinned."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SYSTEM = " ".join(f"Rule {number}: answer in short words." for number in range(12))


@contextmanager
def pinning_server(
    model: Path, server_builder: Callable[..., Any], *arguments: str, **environment: str
) -> Iterator[Any]:
    """Start it, with options and variables besides, and end it."""
    server = server_builder(
        model,
        *("--block-size", "32", "--num-gpu-blocks-override", "40"),
        "--enable-prompt-tokens-details",
        *arguments,
        with_reprise=True,
        REPRISE_KV_PINS__ENABLED="true",
        REPRISE_KV_PINS__MAX_SHARE="0.6",
        REPRISE_SERVING__STATS_INTERVAL_S="0.2",
        **environment,
    )
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def chat_with_system_prompt(question: str) -> list[dict[str, str]]:
    """Return the messages of a chat whose prefix is pinned after the first one."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def num_cached(reply: Any) -> int:
    """Return how many tokens of a reply's prompt were cached."""
    assert reply.status == 200
    return int((reply.json["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def press(server: Any, tag: str) -> None:
    """Evict what is not pinned; each time with another tag."""
    for number in range(8):
        prompt = " ".join(f"{tag}{number}x{index}" for index in range(110))
        assert server.complete(prompt, max_tokens=1).status == 200
