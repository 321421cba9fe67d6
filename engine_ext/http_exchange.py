"""One HTTP request, as the engine client sees it: what its headers ask, and what came of it."""

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from reprise.engine_ext.request_control import HEADER_PREFIX

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

REPLY_HEADER = b"x-reprise-cache"

# The order in which the kinds are told where one HTTP request is several generations.
_KINDS = ("exact", "semantic", "clause", "miss")


class HttpExchange:
    """What the middleware knows of a request and the engine client adds to it."""

    def __init__(self, headers: dict[str, str], api_key: str | None) -> None:
        self.headers = headers
        """Ours only, names in lower case."""
        self.api_key = api_key
        self._kinds: list[Callable[[], str]] = []

    def add_outcome(self, kind: Callable[[], str]) -> None:
        """One generation of this request; `kind` tells, when asked, how the cache took it."""
        self._kinds.append(kind)

    def outcome(self) -> str | None:
        """The value of the reply's `x-reprise-cache`; None where nothing was generated."""
        kinds = {kind() for kind in self._kinds}
        return ", ".join(kind for kind in _KINDS if kind in kinds) or None


current_exchange: ContextVar[HttpExchange | None] = ContextVar("reprise_exchange", default=None)


class ExchangeMiddleware:
    """Makes the exchange known to the engine client and tells its outcome in the reply.

    The head of a reply waits for the first piece of its body: only then, with a stream, has the
    cache been asked.
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
        exchange = HttpExchange(headers, api_key)
        head: Message | None = None

        async def send_with_outcome(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                head = message
                return
            if head is not None:
                started, head = head, None
                if (outcome := exchange.outcome()) is not None:
                    reply = (REPLY_HEADER, outcome.encode("latin-1"))
                    started["headers"] = [*started.get("headers", ()), reply]
                await send(started)
            await send(message)

        token = current_exchange.set(exchange)
        try:
            await self._app(scope, receive, send_with_outcome)
        finally:
            current_exchange.reset(token)
