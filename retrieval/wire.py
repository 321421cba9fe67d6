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

from .answer import AnswerUpdate
from .invalidation import Forgotten, Invalidation
from .retriever import RetrievalHealth, RetrievalStats

_MAX_MESSAGE_BYTES = 256 << 20


class Hello(msgspec.Struct, tag=True, frozen=True):
    """The client's first word."""

    wants_records: bool
    """Send whole answers that have exact keys."""
    pinned_cores: tuple[int, ...] = ()
    """Cores that the client was pinned to, and that retrieval keeps off."""
    wants_updates: bool = True
    """Tell of answers that join and leave."""
    wants_forgotten: bool = False
    """Tell of what is to be forgotten."""
    position: str | None = None
    """How far the client has followed that before."""


class Submit(msgspec.Struct, tag=True, frozen=True):
    request_id: str
    namespace: str
    text: str | None
    prompt_tokens: bytes


class Discard(msgspec.Struct, tag=True, frozen=True):
    request_id: str


class Store(msgspec.Struct, tag=True, frozen=True):
    record: bytes


class Credit(msgspec.Struct, tag=True, frozen=True):
    namespace: str
    accepted_tokens: dict[str, int]


class Flush(msgspec.Struct, tag=True, frozen=True):
    ticket: int
    timeout_s: float


class LookUp(msgspec.Struct, tag=True, frozen=True):
    ticket: int
    namespace: str
    exact_key: bytes


class Forget(msgspec.Struct, tag=True, frozen=True):
    ticket: int
    invalidation: Invalidation
    timeout_s: float


class Welcome(msgspec.Struct, tag=True, frozen=True):
    """The server's first word."""

    block_name: str


class Joined(msgspec.Struct, tag=True, frozen=True):
    update: AnswerUpdate
    record: bytes | None


class Left(msgspec.Struct, tag=True, frozen=True):
    answer_id: str
    namespace: str


class Reply(msgspec.Struct, tag=True, frozen=True):
    """To a Flush (`done`) or a LookUp (`record`)."""

    ticket: int
    done: bool
    record: bytes | None = None


class Forgot(msgspec.Struct, tag=True, frozen=True):
    """To a Forget, once the process has done it, and once more when the tier has, if later."""

    ticket: int
    invalidation_id: str
    removed: tuple[tuple[str, str], ...]
    done: bool


class Gone(msgspec.Struct, tag=True, frozen=True):
    """What is to be forgotten wherever it is held."""

    forgotten: Forgotten


class Status(msgspec.Struct, tag=True, frozen=True):
    stats: RetrievalStats
    health: RetrievalHealth


Request = Hello | Submit | Discard | Store | Credit | Flush | LookUp | Forget
Response = Welcome | Joined | Left | Reply | Forgot | Gone | Status
_ENCODER = msgspec.msgpack.Encoder()
REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
RESPONSES: msgspec.msgpack.Decoder[Response] = msgspec.msgpack.Decoder(Response)


class Sender:
    """Sends messages over a socket from a thread of its own, so that `send` never waits.

    Args:
        connection: A connected stream socket.
        queue_length: Most messages waiting; further ones are refused.
    """

    def __init__(self, connection: socket.socket, *, queue_length: int) -> None:
        self._connection, self._queue_length = connection, queue_length
        self._queue: deque[Request | Response] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="reprise-sender", daemon=True)
        self._thread.start()

    def send(self, message: Request | Response) -> bool:
        """Queue a message; False if the queue is full or the connection gone."""
        with self._changed:
            if self._closed or len(self._queue) >= self._queue_length:
                return False
            self._queue.append(message)
            self._changed.notify()
            return True

    def close(self) -> None:
        """Drop what is queued and close the socket. Idempotent."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                messages = list(self._queue)
                self._queue.clear()
            try:
                for message in messages:
                    body = _ENCODER.encode(message)
                    self._connection.sendall(len(body).to_bytes(4, "little") + body)
            except OSError:
                self.close()
                return


def receive(connection: socket.socket) -> bytes | None:
    """The next message's bytes; None once the other side is gone."""
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
