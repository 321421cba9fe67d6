"""Carries an HTTP request's headers to the engine client, and its outcome back to the reply."""

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.request.reply_headers import INFO_HEADER, REPLY_HEADER
from reprise.engine_ext.request.request_control import HEADER_PREFIX
from reprise.engine_ext.request.request_info import CACHE_KINDS, RequestInfo, merged
from reprise.engine_ext.request.tenants import ServerTenants

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEADERS_THAT_ASK = frozenset({REPLY_HEADER.decode(), INFO_HEADER.decode()})
_STREAM_END = b"data: [DONE]"
# Messages of a stream that wait for the outcome; vLLM sends two before it asks the engine.
_MAX_HELD_MESSAGES = 4


class HttpRequestContext:
    """What the middleware knows of an HTTP request, and what the engine client adds to that."""

    def __init__(self, headers: dict[str, str], tenant: str | None, *, path: str = "") -> None:
        self.headers = headers
        """Ours only, names in lower case."""
        self.tenant = tenant
        """The request's tenant according to `ServerTenants`; None: unknown."""
        self.path = path
        self._outcomes: list[tuple[Callable[[], str], Callable[[], str | None]]] = []
        self._infos: list[RequestInfo] = []

    @property
    def wants_outcome(self) -> bool:
        """Whether the client asks for the outcome, be it by an empty header."""
        return not self.headers.keys().isdisjoint(_HEADERS_THAT_ASK)

    def add_outcome(
        self, kind: Callable[[], str], *, reason: Callable[[], str | None] = lambda: None
    ) -> None:
        """Add one request to the engine; `kind` returns how the cache took it, and `reason` why it
        could not be an exact hit, in one word; None: it could."""
        self._outcomes.append((kind, reason))

    def outcome(self) -> str | None:
        """Return the value of the reply's `x-reprise-cache`; None: the engine was not asked."""
        kinds = {kind() for kind, _ in self._outcomes}
        reasons = {reason() for _, reason in self._outcomes} - {None}
        words = ", ".join(kind for kind in CACHE_KINDS if kind in kinds) or None
        return f"{words}; reason={min(filter(None, reasons))}" if words and reasons else words

    def add_info(self, info: RequestInfo) -> None:
        """Add the information on one request to the engine client that is over."""
        self._infos.append(info)

    def take_info(self) -> bytes | None:
        """Remove and return the information on the requests that are over; None: there is none."""
        infos, self._infos = self._infos, []
        return merged(infos).as_json().encode() if infos else None


current_http_context: ContextVar[HttpRequestContext | None] = ContextVar(
    "reprise_http_context", default=None
)


class HttpContextMiddleware:
    """Sets the context for the engine client and reports its outcome in the reply."""

    def __init__(self, app: AsgiApp, tenants: ServerTenants | None = None) -> None:
        """Wrap `app`; without `tenants`, the tenant of every request is unknown."""
        self._app = app
        self._tenants = tenants or ServerTenants(others_check=True)
        self._errors = ErrorCounter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. What is sent to a WebSocket passes as it is."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        http_context = self._context_of(scope)
        if scope["type"] == "http":
            send = _Reply(http_context, send, errors=self._errors).send
        token = current_http_context.set(http_context)
        try:
            await self._app(scope, receive, send)
        finally:
            current_http_context.reset(token)

    def _context_of(self, scope: Scope) -> HttpRequestContext:
        headers: dict[str, str] = {}
        authorization = None
        for raw_name, raw_value in scope["headers"]:
            name = raw_name.decode("latin-1").lower()
            if name.startswith(HEADER_PREFIX):
                value = _text_of(raw_value)
                # As HTTP has it: a header that comes twice is one list.
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            elif name == "authorization" and authorization is None:  # vLLM takes the first too
                authorization = raw_value.decode("latin-1")
        tenant = self._tenants_of(scope).tenant_of(authorization)
        return HttpRequestContext(headers, tenant, path=scope.get("path", ""))

    def _tenants_of(self, scope: Scope) -> ServerTenants:  # noqa: ARG002 - a server's own may ask
        return self._tenants


def _text_of(value: bytes) -> str:
    """Return a header's value: UTF-8, as most clients send what is not ASCII, or Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


class _Reply:
    """Sends one reply to the client, with headers of ours.

    The head of a reply that is no stream waits for the first piece of its body, which comes with
    it; by then all that is reported is known. The head of a stream leaves at once, as vLLM
    sends it: clients and proxies wait for heads. It is held back until the cache has been asked
    only for a client that has sent one of the two headers, and so wants to know; and what is known
    at the end only is then a comment line before the end, which clients skip.
    """

    def __init__(
        self, http_context: HttpRequestContext, send: Send, *, errors: ErrorCounter
    ) -> None:
        self._http_context = http_context
        self._send = send
        self._errors = errors
        self._held: list[Message] = []
        self._is_stream = False

    async def send(self, message: Message) -> None:
        """Send what the app sends, in its order, with our headers and comments."""
        if message["type"] == "http.response.start":
            self._is_stream = _is_event_stream(message)
            if self._is_stream and not self._http_context.wants_outcome:
                await self._send(message)
            else:
                self._held.append(message)
            return
        if self._held:
            self._held.append(message)
            # The events of `/v1/responses` begin before the engine is asked.
            may_wait = self._is_stream and message.get("more_body")
            if may_wait and len(self._held) <= _MAX_HELD_MESSAGES and self._outcome() is None:
                return
            held, self._held = self._held, []
            held[0]["headers"] = [*held[0].get("headers", ()), *self._headers()]
            for one in held[:-1]:
                await self._send(one)
        if self._is_stream and _is_end(message) and (info := self._info()) is not None:
            comment = b": " + INFO_HEADER + b" " + info + b"\n\n"
            message["body"] = comment + message.get("body", b"")
        await self._send(message)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = []
        if outcome := self._outcome():
            headers.append((REPLY_HEADER, outcome.encode("latin-1")))
        if not self._is_stream and (info := self._info()) is not None:
            headers.append((INFO_HEADER, info))
        return headers

    def _outcome(self) -> str | None:
        """Return the outcome; None: not known yet."""
        try:
            return self._http_context.outcome()
        except Exception as error:
            self._errors.record("reply_header", error)
            return ""

    def _info(self) -> bytes | None:
        try:
            return self._http_context.take_info()
        except Exception as error:
            self._errors.record("reply_header", error)
            return None


def _is_event_stream(head: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in head.get("headers", ())
    )


def _is_end(message: Message) -> bool:
    return message.get("body", b"").startswith(_STREAM_END) or not message.get("more_body")
