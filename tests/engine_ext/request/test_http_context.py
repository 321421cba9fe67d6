"""The middleware: what the engine client learns, and what the reply tells."""

from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest

from reprise.engine_ext.request.http_context import (
    HttpContextMiddleware,
    HttpRequestContext,
    current_http_context,
)
from reprise.engine_ext.request.request_info import DraftCounts, RequestInfo, SourceCounts
from reprise.engine_ext.request.tenants import ServerTenants, key_namespace


async def run(
    app: Callable[..., Awaitable[None]],
    *,
    headers: dict[str, str],
    kind: str = "http",
    tenants: ServerTenants | None = None,
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await HttpContextMiddleware(app, tenants)({"type": kind, "headers": raw}, receive, send)
    return sent


async def test_headers_and_key_reach_the_engine_client_and_the_outcome_the_reply() -> None:
    seen: list[Any] = []
    kinds = iter(["exact"])

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        http_context = current_http_context.get()
        assert http_context is not None
        seen.append((http_context.headers, http_context.tenant))
        # As with a stream: the cache is asked only now, after the head was handed over.
        http_context.add_outcome(lambda: next(kinds))
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await send({"type": "http.response.body", "body": b"2"})

    asked = {"X-Reprise-Cache": "off", "authorization": "Bearer k"}
    sent = await run(app, headers=asked, tenants=ServerTenants(["k"]))
    assert seen == [({"x-reprise-cache": "off"}, key_namespace("k"))]
    assert sent[0]["headers"] == [(b"a", b"b"), (b"x-reprise-cache", b"exact")]
    assert [message.get("body") for message in sent] == [None, b"1", b"2"]
    assert current_http_context.get() is None


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
async def test_headers_are_read_as_they_were_written(encoding: str) -> None:
    seen: list[Any] = []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        http_context = current_http_context.get()
        assert http_context is not None
        seen.append(http_context.headers)

    raw = [(b"x-reprise-namespace", "münchen".encode(encoding))]
    await HttpContextMiddleware(app)({"type": "http", "headers": raw}, AsyncMock(), AsyncMock())
    assert seen == [{"x-reprise-namespace": "münchen"}]


async def test_outcomes_of_several_requests_are_one_header_and_none_is_no_header() -> None:
    async def several(_scope: Any, _receive: Any, send: Any) -> None:
        http_context = current_http_context.get()
        assert http_context is not None
        for kind in ("miss", "exact", "miss"):
            http_context.add_outcome(lambda kind=kind: kind)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def none(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert (await run(several, headers={}))[0]["headers"] == [(b"x-reprise-cache", b"exact, miss")]

    async def sampled(_scope: Any, _receive: Any, send: Any) -> None:
        http_context = current_http_context.get()
        assert http_context is not None
        for kind in ("miss", "semantic"):
            http_context.add_outcome(lambda kind=kind: kind, reason=lambda: "sampled")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert (await run(sampled, headers={}))[0]["headers"] == [
        (b"x-reprise-cache", b"semantic, miss; reason=sampled")
    ]
    assert (await run(none, headers={"authorization": "Basic abc"}))[0]["headers"] == []


async def test_a_websocket_has_a_tenant_and_nothing_else_is_changed() -> None:
    tenants = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        http_context = current_http_context.get()
        tenants.append(http_context.tenant if http_context is not None else "no context")
        await send({"type": scope["type"]})

    for kind in ("websocket", "lifespan"):
        asked = {"authorization": "Bearer k"}
        sent = await run(app, headers=asked, kind=kind, tenants=ServerTenants(["k"]))
        assert sent == [{"type": kind}]
        assert current_http_context.get() is None
    assert tenants == [key_namespace("k"), "no context"]


async def test_of_two_keys_the_one_that_vllm_checks_counts() -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        http_context = current_http_context.get()
        assert http_context is not None
        assert http_context.tenant == key_namespace("first")

    raw = [(b"authorization", b"Bearer first"), (b"Authorization", b"Bearer second")]
    middleware = HttpContextMiddleware(app, ServerTenants(["first", "second"]))
    await middleware({"type": "http", "headers": raw}, AsyncMock(), AsyncMock())


async def test_without_tenants_the_middleware_knows_none() -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        http_context = current_http_context.get()
        assert http_context is not None
        assert http_context.tenant is None

    assert await run(app, headers={"authorization": "Bearer k"}) == []


def info(kind: str, drafted: int, retrieval_ms: float | None) -> RequestInfo:
    counts = DraftCounts(3, {"corpus": SourceCounts(drafted, 1)})
    return RequestInfo((kind,), counts, retrieval_ms, similarity=0.5, took_ms=7.0)


TOLD = (
    b'{"cache":["exact","miss"],"drafts":{"steps":6,"by_source":'
    b'{"corpus":{"drafted":9,"accepted":2}}},"retrieval_ms":1.5,"similarity":0.5,"took_ms":7.0}'
)


def app_that_tells(content_type: bytes, bodies: list[bytes]) -> Callable[..., Awaitable[None]]:
    """Two requests to the engine client are over before the last piece but one is sent."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        http_context = current_http_context.get()
        assert http_context is not None
        headers = [(b"content-type", content_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, body in enumerate(bodies):
            if number == max(0, len(bodies) - 2):
                http_context.add_info(info("miss", 4, 1.5))
                http_context.add_info(info("exact", 5, None))
            more = number < len(bodies) - 1
            await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


async def test_what_is_known_at_the_end_goes_into_the_head_of_a_whole_reply() -> None:
    for bodies in ([b"{}"], [b"{}", b""]):
        sent = await run(app_that_tells(b"application/json", bodies), headers={})
        assert sent[0]["headers"][-1] == (b"x-reprise-info", TOLD)
        assert b"".join(message["body"] for message in sent[1:]) == b"{}"


async def test_what_is_known_at_the_end_is_a_comment_in_a_stream() -> None:
    comment = b": x-reprise-info " + TOLD + b"\n\n"
    done = b"data: [DONE]\n\n"
    kind = b"text/event-stream; charset=utf-8"
    sent = await run(app_that_tells(kind, [b"data: {}\n\n", done, b""]), headers={})
    assert [name for name, _ in sent[0]["headers"]] == [b"content-type"]
    assert [message["body"] for message in sent[1:]] == [b"data: {}\n\n", comment + done, b""]
    sent = await run(app_that_tells(kind, [b"data: {}\n\n", b"data: {}\n\n", b""]), headers={})
    assert sent[-1]["body"] == comment


def stream_that_asks_late(num_events: int) -> Callable[..., Awaitable[None]]:
    """A stream whose first events leave before the engine client is asked."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(num_events):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
        http_context = current_http_context.get()
        assert http_context is not None
        http_context.add_outcome(lambda: "exact")
        await send({"type": "http.response.body", "body": b"end"})

    return app


async def test_the_head_of_a_stream_leaves_at_once() -> None:
    leaves_before: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def watched(message: Any) -> None:
            await send(message)
            leaves_before.append(len(sent))

        await stream_that_asks_late(1)(scope, receive, watched)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": []}
    await HttpContextMiddleware(app)(scope, None, send)  # type: ignore[arg-type]
    assert leaves_before == [1, 2, 3]
    assert [name for name, _ in sent[0]["headers"]] == [b"content-type"]
    # A client that wants to be told waits for it, be it that it asks for nothing else.
    sent, leaves_before = [], []
    scope = {"type": "http", "headers": [(b"x-reprise-cache", b"")]}
    await HttpContextMiddleware(app)(scope, None, send)  # type: ignore[arg-type]
    assert leaves_before == [0, 0, 3]
    assert (b"x-reprise-cache", b"exact") in sent[0]["headers"]
    assert [message.get("body") for message in sent] == [None, b"0", b"end"]


async def test_a_stream_that_never_asks_is_not_held_for_ever() -> None:
    sent = await run(stream_that_asks_late(9), headers={"x-reprise-info": "off"})
    assert [name for name, _ in sent[0]["headers"]] == [b"content-type"]
    assert b"".join(message.get("body", b"") for message in sent) == b"012345678end"


async def test_a_header_that_comes_twice_is_one_list() -> None:
    seen = []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        http_context = current_http_context.get()
        assert http_context is not None
        seen.append(http_context.headers)

    raw = [(b"x-reprise-cache", b"no-store"), (b"X-Reprise-Cache", b"no-cache")]
    await HttpContextMiddleware(app)({"type": "http", "headers": raw}, None, None)  # type: ignore[arg-type]
    assert seen == [{"x-reprise-cache": "no-store, no-cache"}]


@pytest.mark.parametrize("broken", ["outcome", "take_info"])
@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream"])
async def test_an_error_of_ours_leaves_the_reply_as_it_is(
    monkeypatch: pytest.MonkeyPatch, broken: str, kind: bytes
) -> None:
    def fail(_self: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(HttpRequestContext, broken, fail)
    app = app_that_tells(kind, [b"{}", b""])
    sent = await run(app, headers={"x-reprise-info": "on"})
    body = b"".join(message.get("body", b"") for message in sent)
    assert body.split(b": x-reprise-info")[0] == b"{}"
    assert sent[0]["status"] == 200
    assert b"x-reprise-cache" not in dict(sent[0]["headers"])
