"""A server with a KV connector: exact hits, pins and tenants beside blocks that come back from a
folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reprise.tests.engine_ext.kv_connectors.folder_connector import Folder
from reprise.tests.engine_ext.kv_connectors.transfer_config import transfer_config
from reprise.tests.engine_ext.pinning_server import (
    chat_with_system_prompt,
    num_cached,
    pinning_server,
    press,
)

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1800)]

QUESTION = "How do I cancel my order, and when do I get my money back?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def server(demo_model: Path, server_builder: Callable[..., Any], folder: Folder) -> Iterator[Any]:
    config = json.dumps(transfer_config(folder.path))
    with pinning_server(demo_model, server_builder, "--kv-transfer-config", config) as started:
        yield started


def ask(server: Any, question: str, key: str) -> tuple[str, str, int]:
    """The answer to a chat with the system prompt, where it came from, and how many tokens of its
    prompt were cached."""
    reply = server.chat(question, key=key, messages=chat_with_system_prompt(question))
    cache = reply.headers["x-reprise-cache"].partition(";")[0]
    return reply.text, cache, num_cached(reply)


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
    wait_until(lambda: server.metric("reprise:kv_pinned_blocks") > 0)
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
    again = server.chat(
        "",
        key=key,
        messages=chat_with_system_prompt("What is one?"),
        headers={"x_reprise_cache": "no-cache"},
    )
    (event,) = folder.take_events()
    assert event.startswith("load failed")
    assert again.text == text
    # Its retrieval process may have been silent for some seconds.
    wait_until(lambda: server.send("/reprise/health").json["state"] == "ready")
    assert server.send("/reprise/health").json["errors"] == {}
