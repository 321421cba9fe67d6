"""The admin routes of pinned prefixes, and the command that asks them, without an engine."""

import io
import json
import re
import threading
from collections.abc import Iterator
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib import error as url_error

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from reprise.engine_ext.cli.pins_command import app
from reprise.tests.engine_ext.admin.test_admin_routes import Engine, client_of

PIN = {
    "pin_id": "ab", "namespace": "salt-x", "origin": "system", "state": "pinned", "tokens": 64,
    "resident_blocks": 4, "requests": 3, "requests_an_hour": 2.5, "hit_tokens": 128,
    "head_token_ids": [104, 105],
}  # fmt: skip
STATS = {"pins": 1, "pinned_blocks": 4, "max_blocks": 8, "hit_tokens": 128, "saved_tokens": 64}


class PinningEngine(Engine):
    """Two data parallel engines, the second without pins."""

    pins_prefixes = True

    def __init__(self) -> None:
        super().__init__()
        self.added: list[Any] = []
        self.removed: list[Any] = []

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(
            encode=lambda text: [ord(c) for c in text],
            decode=lambda token_ids: "".join(map(chr, token_ids)),
        )

    async def get_pins(self) -> list[Any]:
        return [[PIN], None]

    async def get_pin_stats(self) -> list[Any]:
        return [STATS, None]

    async def pin_prefix(self, token_ids: list[int], **given: Any) -> None:
        if not token_ids:
            raise ValueError("a prefix has 1 to 9 tokens, got 0")
        self.added.append((token_ids, given))

    async def unpin(self, pin_id: str | None = None) -> list[Any]:
        self.removed.append(pin_id)
        return [[PIN], None]


@pytest.fixture
def engine() -> PinningEngine:
    return PinningEngine()


@pytest.fixture
def client(engine: PinningEngine, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    return client_of(engine)


def test_pins_are_listed_with_what_they_begin_with(client: TestClient) -> None:
    reply = client.get("/reprise/pins").json()
    assert reply["stats"] == [STATS, None]
    assert reply["pins"] == [{**PIN, "engine": 0, "begins_with": "hi"}]
    assert client.get("/reprise/stats").json()["kv_pins"] == [STATS, None]


def test_a_prefix_is_pinned_for_whom_it_is_meant(client: TestClient, engine: PinningEngine) -> None:
    assert client.post("/reprise/pins", json={"prompt": "hi"}).json()["tokens"] == 2
    body = {"prompt_token_ids": [1, 2, 3], "namespace": "key-a", "cache_salt": "s"}
    assert client.post("/reprise/pins", json=body).json()["tokens"] == 3
    assert engine.added == [
        ([104, 105], {"namespace": None, "cache_salt": None}),
        ([1, 2, 3], {"namespace": "key-a", "cache_salt": "s"}),
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "expected a JSON object"),
        ({}, "either prompt or prompt_token_ids"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "either"),
        ({"prompt": 5}, "prompt must be a text"),
        ({"prompt": "a", "cache_salt": 5}, "cache_salt must be a text"),
        ({"prompt_token_ids": [True]}, "whole numbers"),
        ({"prompt": "a", "forever": True}, "expected a JSON object of"),
        ({"prompt_token_ids": []}, "1 to 9 tokens"),
        ({"prompt": "a", "namespace": "a/b"}, "namespace must not contain"),
        ({"prompt": "a", "namespace": "\ud800"}, "namespace must be a text"),
        ({"prompt": "\ud800"}, "prompt must be a text"),
        ({"prompt": "a", "cache_salt": "\ud800"}, "cache_salt must be a text"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt must not be empty"),
    ],
)
def test_what_makes_no_sense_is_refused(client: TestClient, body: Any, message: str) -> None:
    reply = client.post("/reprise/pins", content=json.dumps(body))
    assert reply.status_code == 400
    assert re.search(message, reply.json()["detail"])


def test_a_body_nested_too_deeply_is_refused(client: TestClient) -> None:
    reply = client.post("/reprise/pins", content="[" * 100_000)
    assert (reply.status_code, "JSON object" in reply.json()["detail"]) == (400, True)


def test_pins_are_removed_one_or_all(client: TestClient, engine: PinningEngine) -> None:
    assert client.delete("/reprise/pins?pin_id=ab").json()["removed"] == 1
    assert client.delete("/reprise/pins?everything=true").json()["removed"] == 1
    assert engine.removed == ["ab", None]
    for query in ("", "?everything=false", "?pin_id=a&everything=true", "?other=1"):
        assert client.delete(f"/reprise/pins{query}").status_code == 400


def test_without_the_setting_there_are_none(client: TestClient, engine: PinningEngine) -> None:
    engine.pins_prefixes = False
    for method in ("GET", "POST", "DELETE"):
        assert client.request(method, "/reprise/pins").status_code == 409


class _Handler(BaseHTTPRequestHandler):
    client: TestClient

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        reply = self.client.request(self.command, self.path, content=self.rfile.read(length))
        self.send_response(reply.status_code)
        self.end_headers()
        self.wfile.write(reply.content)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Quietly."""


@pytest.fixture
def url(client: TestClient) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"client": client})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def test_the_command_lists_adds_and_removes(url: str, engine: PinningEngine) -> None:
    def run(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--url", url], catch_exceptions=False)
        assert result.exit_code == 0
        return str(result.output)

    listed = run("list")
    assert "salt-x" in listed
    assert '"hi"' in listed
    assert "1 prefixes in 4 of 8 blocks; 128 tokens found, 64 of them kept by pins" in listed
    assert "2 tokens" in run("add", "hi", "--cache-salt", "s")
    assert engine.added[-1] == ([104, 105], {"namespace": None, "cache_salt": "s"})
    assert "1 removed" in run("remove", "all")
    assert engine.removed[-1] is None
    engine.pins_prefixes = False
    with pytest.raises(ValueError, match=r"409: kv_pins\.enabled is false"):
        run("list")


def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ValueError, match="refused"):
        CliRunner().invoke(app, ["list", "--url", "http://127.0.0.1:9"], catch_exceptions=False)


class _Other(BaseHTTPRequestHandler):
    said: bytes

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.wfile.write(self.said)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Quietly."""


@pytest.mark.parametrize("words", [("list",), ("add", "hi"), ("remove", "all")])
@pytest.mark.parametrize(
    "said",
    [
        b"-ERR unknown command\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"",
        b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\n[]",
    ],
)
def test_what_is_no_server_of_ours_is_one_line(said: bytes, words: tuple[str, ...]) -> None:
    handler = type("Handler", (_Other,), {"said": said})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            with pytest.raises(ValueError, match=f"^{address}/reprise/pins") as refused:
                CliRunner().invoke(app, [*words, "--url", address], catch_exceptions=False)
        finally:
            server.shutdown()
            thread.join(10)
    assert "\n" not in str(refused.value)


def test_a_refusal_in_vllms_form_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's server puts what a route says into its own object of errors."""
    message = "the admin routes are closed: " + "and why " * 40 + "so"
    body = json.dumps({"error": {"message": message, "code": 403}}).encode()
    refusal = url_error.HTTPError("http://h", 403, "", HTTPMessage(), io.BytesIO(body))

    def refuse(*_: Any, **__: Any) -> None:
        raise refusal

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ValueError, match=r": 403: the admin .*and why so$"):
        CliRunner().invoke(app, ["list"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("list", "--url", "http://127.0.0.1:port"), "--url http://127.0.0.1:port: "),
        (("list", "--admin-token", "S3CR3T\n"), "admin token must be printable"),
        (("add", "@FILE"), "FILE is no text in UTF-8"),
    ],
)
def test_bad_input_is_named(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    file = tmp_path / "FILE"
    file.write_bytes(b"\xff")
    given = [word.replace("@FILE", f"@{file}") for word in words]
    with pytest.raises(ValueError, match=message) as refused:
        CliRunner().invoke(app, given, catch_exceptions=False)
    assert "S3CR3T" not in str(refused.value)
