"""What the retrieval process and its clients say to each other over a Unix socket.

Messages are MessagePack, each after its length (4 bytes, little endian). Near answers do not go
this way: they lie in shared memory.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque

import msgspec

from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.api.invalidation import Forgotten, Invalidation
from reprise.retrieval.api.retriever import RetrievalHealth, RetrievalStats
from reprise.retrieval.host.loop_errors import LoopErrors

_MAX_MESSAGE_BYTES = 256 << 20
_MESSAGE_OVERHEAD_BYTES = 64


class LaunchConfig(msgspec.Struct, frozen=True):
    """What the owner hands to the process at its start."""

    config: dict[str, object]
    address: str
    block_prefix: str
    owner_pid: int
    tokenizer: str | None = None
    tokenizer_key: str = ""
    json_logs: bool = False
    """Log lines are JSON."""
    began_s: float | None = None
    """When the owner started the process, in seconds of `time.monotonic`."""
    is_first: bool = True
    """Of a row of starts: what fails at each of them is logged once."""


class Hello(msgspec.Struct, tag=True, frozen=True):
    """The client's first word."""

    pinned_cores: tuple[int, ...] = ()
    """Cores that the client was pinned to, and that retrieval keeps off."""
    wants_updates: bool = True
    """Send answers that join and leave."""
    wants_forgotten: bool = False
    """Send what is to be forgotten."""
    position: str | None = None
    """How far the client has followed that before."""
    since_s: float = 0.0
    """Without a position: since when it holds anything that may be meant."""


class Submit(msgspec.Struct, tag=True, frozen=True):
    request_id: str
    namespace: str
    text: str | None
    prompt_tokens: bytes


class Discard(msgspec.Struct, tag=True, frozen=True):
    request_id: str


class Store(msgspec.Struct, tag=True, frozen=True):
    record: bytes


class RecordUsage(msgspec.Struct, tag=True, frozen=True):
    namespace: str
    accepted_tokens: dict[str, int]


class Flush(msgspec.Struct, tag=True, frozen=True):
    ticket: int
    timeout_s: float


class Forget(msgspec.Struct, tag=True, frozen=True):
    ticket: int
    invalidation: Invalidation
    timeout_s: float


class Welcome(msgspec.Struct, tag=True, frozen=True):
    """The server's first word."""

    block_name: str


class AnswerAdded(msgspec.Struct, tag=True, frozen=True):
    """An answer joined, here or on another replica."""

    update: AnswerUpdate


class AnswerRemoved(msgspec.Struct, tag=True, frozen=True):
    """An answer left."""

    answer_id: str
    namespace: str


class FlushReply(msgspec.Struct, tag=True, frozen=True):
    """To a Flush."""

    ticket: int
    done: bool


class ForgetReply(msgspec.Struct, tag=True, frozen=True):
    """To a Forget, once the process has done it, and once more when the tier has, if later."""

    ticket: int
    invalidation_id: str
    removed: tuple[tuple[str, str], ...]
    done: bool


class InvalidationNotice(msgspec.Struct, tag=True, frozen=True):
    """What is to be forgotten wherever it is held."""

    forgotten: Forgotten


class Status(msgspec.Struct, tag=True, frozen=True):
    stats: RetrievalStats
    health: RetrievalHealth
    has_read: bool = True
    """Whether all has been sent that is there: not while the process reads its tier."""


Request = Hello | Submit | Discard | Store | RecordUsage | Flush | Forget
Response = (
    Welcome | AnswerAdded | AnswerRemoved | FlushReply | ForgetReply | InvalidationNotice | Status
)
_ENCODER = msgspec.msgpack.Encoder()
REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
RESPONSES: msgspec.msgpack.Decoder[Response] = msgspec.msgpack.Decoder(Response)


class Sender:
    """Sends messages over a socket from a thread of its own, so that `send` never waits.

    Args:
        connection: A connected stream socket.
        max_bytes: Most bytes of messages waiting; further ones are refused.
    """

    def __init__(self, connection: socket.socket, *, max_bytes: int) -> None:
        self._connection, self._max_bytes = connection, max_bytes
        self._queue: deque[bytes] = deque()
        self._num_bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        self._errors = LoopErrors("Sending a message of retrieval")
        self._thread = threading.Thread(target=self._run, name="reprise-sender", daemon=True)
        self._thread.start()

    def send(self, message: Request | Response) -> bool:
        """Queue a message; False if it cannot be sent, the queue is full or the connection gone."""
        # Here, not in the thread: what waits is of known size.
        body = self._encode(message)
        if body is None:
            return False
        size = len(body) + _MESSAGE_OVERHEAD_BYTES
        with self._changed:
            if self._closed or self._num_bytes + size > self._max_bytes:
                return False
            self._queue.append(body)
            self._num_bytes += size
            self._changed.notify_all()
            return True

    def wait_for_room(self) -> bool:
        """Wait until at most half of what may wait is waiting; False if the connection is gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._num_bytes <= self._max_bytes // 2)
            return not self._closed

    @property
    def closed(self) -> bool:
        """Whether nothing is sent any more."""
        return self._closed

    @property
    def num_errors(self) -> int:
        """Messages that could not be sent for what they are."""
        return self._errors.num

    def close(self) -> None:
        """Drop what is queued and shut the connection down. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._queue.clear()
            self._num_bytes = 0
            self._changed.notify_all()
            # Under the lock: whoever reads closes the connection next, and its number is another's.
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                body = self._queue.popleft()
            try:
                self._connection.sendall(len(body).to_bytes(4, "little") + body)
            except Exception as error:  # half a message may be out: only a new connection helps
                if not isinstance(error, OSError):
                    self._errors.failed(error)
                self.close()
                return
            with self._changed:
                # Only now: a message on its way takes room like one that waits.
                if not self._closed:
                    self._num_bytes -= len(body) + _MESSAGE_OVERHEAD_BYTES
                    self._changed.notify_all()

    def _encode(self, message: Request | Response) -> bytes | None:
        """Return the message's bytes; None, counted, if it has none that the other side would
        take."""
        try:
            body = _ENCODER.encode(message)
            if len(body) > _MAX_MESSAGE_BYTES:
                raise ValueError(f"a message of {len(body)} bytes is too long")
        except Exception as error:
            self._errors.failed(error)
            return None
        return body


def receive(connection: socket.socket) -> bytes | None:
    """Return the next message's bytes; None once the other side is gone."""
    header = _receive_exactly(connection, 4)
    if header is None:
        return None
    length = int.from_bytes(header, "little")
    return None if length > _MAX_MESSAGE_BYTES else _receive_exactly(connection, length)


def _receive_exactly(connection: socket.socket, length: int) -> bytes | None:
    buffer = bytearray(length)
    view, filled = memoryview(buffer), 0
    while filled < length:
        try:
            count = connection.recv_into(view[filled:])
        except OSError:
            return None
        if count == 0:
            return None
        filled += count
    return bytes(buffer)
