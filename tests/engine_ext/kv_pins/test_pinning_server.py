"""Pinned prefixes of a real server: tenants with one `system` prompt, the operator's own prefixes,
routes and metrics."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(600)]

SYSTEM = " ".join(f"Rule {number}: answer in short words." for number in range(12))
PREFIX = " ".join(f"Clause {number} of the contract holds." for number in range(12))
FEW_BLOCKS = ("--block-size", "32", "--num-gpu-blocks-override", "40")


@pytest.fixture
def server(demo_model: Path, server_builder: Callable[..., Any]) -> Iterator[Any]:
    built = server_builder(
        demo_model,
        *FEW_BLOCKS,
        "--enable-prompt-tokens-details",
        with_reprise=True,
        REPRISE_KV_PINS__ENABLED="true",
        REPRISE_KV_PINS__MAX_SHARE="0.6",
        REPRISE_KV_PINS__PREFIXES=json.dumps([PREFIX]),
        REPRISE_SERVING__STATS_INTERVAL_S="0.2",
    )
    try:
        built.wait()
        yield built
    finally:
        built.stop()


def cached(reply: Any) -> int:
    assert reply.status == 200
    return int((reply.json["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def ask(server: Any, question: str, key: str) -> int:
    """How many tokens were cached of a chat with the system prompt."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return cached(server.chat(question, key=key, messages=messages, max_tokens=4))


def press(server: Any, tag: str) -> None:
    for number in range(8):
        prompt = " ".join(f"{tag}{number}x{index}" for index in range(110))
        assert server.complete(prompt, max_tokens=1).status == 200


def test_tenants_with_one_system_prompt_have_pins_of_their_own(
    server: Any, wait_until: Callable[..., None]
) -> None:
    one, other = server.api_keys[:2]

    def pins() -> list[Any]:
        found: list[Any] = server.send("/reprise/pins").json["pins"]
        return found

    wait_until(lambda: any(pin["origin"] == "operator" for pin in pins()), 60)
    assert ask(server, "What is one?", one) == 0
    assert ask(server, "What is one?", other) == 0
    press(server, "a")
    assert ask(server, "What is two?", one) > 60
    assert ask(server, "What is two?", other) > 60
    systems = [pin for pin in pins() if pin["origin"] == "system"]
    assert len({pin["namespace"] for pin in systems}) == 2
    assert all("Rule 0" in pin["begins_with"] for pin in systems)
    (operators,) = [pin for pin in pins() if pin["origin"] == "operator"]
    assert operators["begins_with"].startswith("Clause 0")
    assert operators["resident_blocks"] > 0

    # One tenant's is removed, and the other's stays.
    mine = next(pin for pin in systems if pin["hit_tokens"])
    gone = server.send(f"/reprise/pins?pin_id={mine['pin_id']}", method="DELETE").json
    assert gone["removed"] == 1
    press(server, "b")
    assert sorted([ask(server, "And?", one) > 60, ask(server, "And?", other) > 60]) == [False, True]
    wait_until(lambda: server.metric("reprise:kv_pin_saved_tokens_total") > 60, 30)
    assert server.metric("reprise:kv_pins") >= 2
    assert server.send("/reprise/stats").json["kv_pins"][0]["errors"] == {}
    assert server.send("/reprise/pins?everything=true", method="DELETE").json["removed"] >= 2
    assert server.metric("reprise:kv_pin_saved_tokens_total") > 60
