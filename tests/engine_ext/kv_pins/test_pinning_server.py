"""Pinned prefixes of a real server: tenants with one `system` prompt, the operator's own prefixes,
routes and metrics."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reprise.tests.engine_ext.pinning_server import (
    chat_with_system_prompt,
    num_cached,
    pinning_server,
    press,
)

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1800)]

PREFIX = " ".join(f"Clause {number} of the contract holds." for number in range(12))


@pytest.fixture
def server(demo_model: Path, server_builder: Callable[..., Any]) -> Iterator[Any]:
    prefixes = json.dumps([PREFIX])
    with pinning_server(demo_model, server_builder, REPRISE_KV_PINS__PREFIXES=prefixes) as started:
        yield started


def ask(server: Any, question: str, key: str) -> int:
    """How many tokens were cached of a chat with the system prompt."""
    messages = chat_with_system_prompt(question)
    return num_cached(server.chat(question, key=key, messages=messages, max_tokens=4))


def test_tenants_with_one_system_prompt_have_pins_of_their_own(
    server: Any, wait_until: Callable[..., None]
) -> None:
    one, other = server.api_keys[:2]

    def pins() -> list[Any]:
        found: list[Any] = server.send("/reprise/pins").json["pins"]
        return found

    wait_until(lambda: any(pin["origin"] == "operator" for pin in pins()))
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
    wait_until(lambda: server.metric("reprise:kv_pin_saved_tokens_total") > 60)
    assert server.metric("reprise:kv_pins") >= 2
    assert server.send("/reprise/stats").json["kv_pins"][0]["errors"] == {}

    # What is erased of a tenant is no longer shown, and what the settings name is pinned again.
    assert {pin["namespace"] for pin in pins() if "Rule 0" in pin["begins_with"]}
    erased = server.send("/reprise/cache?everything=true", method="DELETE")
    assert erased.status in (200, 202)  # retrieval may be starting still
    wait_until(lambda: [pin["origin"] for pin in pins()] == ["operator"])
    assert ask(server, "And now?", one) >= 0
    assert any(pin["origin"] == "system" for pin in pins())
    assert server.send("/reprise/pins?everything=true", method="DELETE").json["removed"] >= 2
    assert server.metric("reprise:kv_pin_saved_tokens_total") > 60
