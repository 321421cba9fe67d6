"""A server with a KV connector: exact hits, pins and tenants beside blocks that come back from a
folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reprise.tests.engine_ext.kv_connectors.folder_connector import Folder
from reprise.tests.engine_ext.kv_connectors.transfer_config import transfer_config

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(600)]

SYSTEM = " ".join(f"Rule {number}: answer in short words." for number in range(12))
QUESTION = "How do I cancel my order, and when do I get my money back?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def server(demo_model: Path, server_builder: Callable[..., Any], folder: Folder) -> Iterator[Any]:
    built = server_builder(
        demo_model,
        *("--block-size", "32", "--num-gpu-blocks-override", "40"),
        *("--kv-transfer-config", json.dumps(transfer_config(folder.path))),
        "--enable-prompt-tokens-details",
        with_reprise=True,
        REPRISE_KV_PINS__ENABLED="true",
        REPRISE_KV_PINS__MAX_SHARE="0.6",
        REPRISE_SERVING__STATS_INTERVAL_S="0.2",
    )
    try:
        built.wait()
        yield built
    finally:
        built.stop()


def ask(server: Any, question: str, key: str) -> tuple[str, str, int]:
    """The answer to a chat with the system prompt, where it came from, and how many tokens of its
    prompt were cached."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    reply = server.chat(question, key=key, messages=messages)
    assert reply.status == 200
    details = reply.json["usage"].get("prompt_tokens_details") or {}
    cache = reply.headers["x-reprise-cache"].partition(";")[0]
    return reply.text, cache, int(details.get("cached_tokens") or 0)


def press(server: Any, tag: str) -> None:
    """Evict what is not pinned."""
    for number in range(8):
        prompt = " ".join(f"{tag}{number}x{index}" for index in range(110))
        assert server.complete(prompt, max_tokens=1).status == 200


def unpin(server: Any) -> None:
    assert server.send("/reprise/pins?everything=true", method="DELETE").json["removed"] > 0


def test_a_repeat_is_an_exact_hit_and_a_tenants_own(server: Any, folder: Folder) -> None:
    one, other = server.api_keys
    text, cache, cached = ask(server, QUESTION, one)
    assert (cache, cached) == ("miss", 0)
    assert ask(server, QUESTION, one)[:2] == (text, "exact")
    # Another tenant's has another salt: nothing is loaded for it, and it says the same.
    folder.take_events()
    assert ask(server, QUESTION, other) == (text, "miss", 0)
    assert folder.take_events() == []


def test_what_is_pinned_stays_and_what_is_not_comes_back(
    server: Any, folder: Folder, wait_until: Callable[..., None]
) -> None:
    key = server.api_keys[0]
    text, _, _ = ask(server, "What is one?", key)
    wait_until(lambda: server.metric("reprise:kv_pinned_blocks") > 0, 60)
    press(server, "a")
    folder.take_events()
    _, _, cached = ask(server, "What is two?", key)
    assert cached > 60
    assert folder.take_events() == [], "what is pinned was loaded"
    unpin(server)
    press(server, "b")
    folder.take_events()
    _, _, loaded = ask(server, "What is three?", key)
    assert loaded > 60
    assert len(folder.take_events()) == 1
    # A load that fails is nobody's business but the engine's.
    unpin(server)
    press(server, "c")
    folder.take_events()
    folder.fail_loads(1)
    again = server.chat("", key=key, messages=_one(), headers={"x_reprise_cache": "no-cache"})
    (event,) = folder.take_events()
    assert event.startswith("load failed")
    assert again.text == text
    state = server.send("/reprise/health").json
    assert state["state"] == "ready"
    assert state["errors"] == {}


def _one() -> list[dict[str, str]]:
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "What is one?"},
    ]
