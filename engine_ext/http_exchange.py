"""One HTTP request, as the engine client sees it: what its headers ask, and what came of it."""

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from reprise.engine_ext.request_control import HEADER_PREFIX
from reprise.engine_ext.request_info import CACHE_KINDS, RequestInfo, merged

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

REPLY_HEADER = b"x-reprise-cache"
INFO_HEADER = b"x-reprise-info"

_STREAM_END = b"data: [DONE]"


class HttpExchange:
    """What the middleware knows of a request and the engine client adds to it."""

    def __init__(self, headers: dict[str, str], api_key: str | None, *, path: str = "") -> None:
        self.headers = headers
        """Ours only, names in lower case."""
        self.api_key = api_key
        self.path = path
        self._kinds: list[Callable[[], str]] = []
        self._infos: list[RequestInfo] = []

    def add_outcome(self, kind: Callable[[], str]) -> None:
        """One generation of this request; `kind` tells, when asked, how the cache took it."""
        self._kinds.append(kind)

    def outcome(self) -> str | None:
        """The value of the reply's `x-reprise-cache`; None where nothing was generated."""
        kinds = {kind() for kind in self._kinds}
        return ", ".join(kind for kind in CACHE_KINDS if kind in kinds) or None

    def add_info(self, info: RequestInfo) -> None:
        """What one request to the engine client, now over, was."""
        self._infos.append(info)

    def take_info(self) -> bytes | None:
        """What there is to tell of the requests that are over, once; None: nothing."""
        infos, self._infos = self._infos, []
        return merged(infos).as_json().encode() if infos else None


current_exchange: ContextVar[HttpExchange | None] = ContextVar("reprise_exchange", default=None)


class ExchangeMiddleware:
    """Makes the exchange known to the engine client and tells its outcome in the reply.

    The head of a reply waits for the first piece of its body: only then, with a stream, has the
    cache been asked. What is known at the end only, and asked for, goes into the head where that
    has not left by then; with a stream it is a comment line before the end, which clients skip.
    """

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; all but HTTP requests pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {}
        api_key = None
        for raw_name, raw_value in scope["headers"]:
            name = raw_name.decode("latin-1").lower()
            if name.startswith(HEADER_PREFIX):
                headers[name] = raw_value.decode("latin-1")
            elif name == "authorization":
                scheme, _, credentials = raw_value.decode("latin-1").partition(" ")
                api_key = credentials.strip() if scheme.lower() == "bearer" else None
        exchange = HttpExchange(headers, api_key, path=scope.get("path", ""))
        head: Message | None = None
        is_stream = False

        async def send_with_outcome(message: Message) -> None:
            nonlocal head, is_stream
            if message["type"] == "http.response.start":
                head = message
                is_stream = _is_event_stream(message)
                return
            if head is not None:
                started, head = head, None
                told = []
                if (outcome := exchange.outcome()) is not None:
                    told.append((REPLY_HEADER, outcome.encode("latin-1")))
                if not is_stream and (info := exchange.take_info()) is not None:
                    told.append((INFO_HEADER, info))
                started["headers"] = [*started.get("headers", ()), *told]
                await send(started)
            elif is_stream and _is_end(message) and (info := exchange.take_info()) is not None:
                comment = b": " + INFO_HEADER + b" " + info + b"\n\n"
                message["body"] = comment + message.get("body", b"")
            await send(message)

        token = current_exchange.set(exchange)
        try:
            await self._app(scope, receive, send_with_outcome)
        finally:
            current_exchange.reset(token)


def _is_event_stream(head: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in head.get("headers", ())
    )


def _is_end(message: Message) -> bool:
    return message.get("body", b"").startswith(_STREAM_END) or not message.get("more_body")
