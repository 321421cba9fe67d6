"""A retriever whose work is done by the retrieval process; any process may have one."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import msgspec
from numpy.typing import ArrayLike

from reprise.retrieval.api.answer import Answer, AnswerUpdate
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.invalidation import Forgetting, Forgotten, Invalidation
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.api.retriever import RetrievalHealth, RetrievalStats, Retriever
from reprise.retrieval.host import steady_clock
from reprise.retrieval.host.loop_errors import LoopErrors, keep_going
from reprise.retrieval.host.pinned_cores import pinned_cores
from reprise.retrieval.host.socket_address import peer_pid, short_address
from reprise.retrieval.query.turns import clip, prompt_tail
from reprise.retrieval.service.held_messages import HeldMessages
from reprise.retrieval.service.shared_results import ResultReader
from reprise.retrieval.service.told_answers import ToldAnswers
from reprise.retrieval.service.wire import (
    RESPONSES,
    AnswerAdded,
    AnswerRemoved,
    Discard,
    Flush,
    FlushReply,
    Forget,
    ForgetReply,
    Hello,
    InvalidationNotice,
    RecordUsage,
    Request,
    Response,
    Sender,
    Status,
    Store,
    Submit,
    Welcome,
    receive,
)
from reprise.retrieval.tiers.record import encode_record

logger = logging.getLogger(__name__)
Found = TypeVar("Found")
_RECONNECT_S = 0.1
_MAX_FORGOTTEN = 10_000
# A status is due every 0.5 s; `watchdog` says from when on it is killed.
_MAX_SILENCE_S = 5.0
# Nothing that this process holds is older, but what it took from a tier.
_BEGAN_S = steady_clock.now_s()


class RetrievalClient(Retriever):
    """Talks to the retrieval process at an address; connects again whenever it is back.

    Until it is connected, and while the process is down, prompts and answers wait, as many of each
    as fill half the queue; what comes beyond finds nothing, which is counted.

    Args:
        address: What the process was started with.
        config: The process's; gives the bounds of queues and budgets.
        wants_updates: Have `updates` return answers that join and leave; they wait for the call.
        wants_forgotten: Have `forgotten` return what is to be forgotten.
    """

    def __init__(
        self,
        address: str,
        *,
        config: RetrievalConfig | None = None,
        wants_updates: bool = True,
        wants_forgotten: bool = False,
    ) -> None:
        self.address = address
        self._config = config or RetrievalConfig()
        half = self._config.queue_length // 2
        self.max_concurrent_searches = min(self._config.max_concurrent_searches, max(1, half))
        self._wants_updates, self._wants_forgotten = wants_updates, wants_forgotten
        self._forgotten: deque[Forgotten] = deque()
        self._position: str | None = None
        self._unconfirmed: dict[str, Invalidation] = {}
        self._told = ToldAnswers(max_bytes=self._config.queue_bytes)
        self._resyncs = 0
        self._sender: Sender | None = None
        # Once there is a process, others want to be heard beside them.
        self._held = HeldMessages(max_length=half, max_bytes=self._config.queue_bytes // 2)
        self._results: ResultReader | None = None
        self._connections = 0
        self._status = Status(RetrievalStats(), RetrievalHealth("starting"))
        self._was_ready, self._heard_s = False, time.monotonic()
        self._dropped = 0
        self._replies: dict[int, FlushReply | ForgetReply] = {}
        self._awaited: set[int] = set()
        self._tickets = itertools.count()
        self._changed = threading.Condition()
        self._closing = False
        self._errors = LoopErrors("Talking to the retrieval process")
        self._odd_messages = LoopErrors("Reading a message of the retrieval process")
        self._unsent = 0
        self._thread = threading.Thread(
            target=keep_going,
            args=(self._run, self._errors),
            kwargs={"pause": self._pause},
            name="reprise-retrieval",
            daemon=True,
        )
        self._thread.start()

    def submit(
        self,
        request_id: str,
        *,
        namespace: str,
        text: str | None = None,
        prompt_token_ids: ArrayLike | None = None,
    ) -> None:
        tokens = b""
        if text is not None:
            text = clip(text)  # what is embedded of it, and no more
        elif prompt_token_ids is not None:
            tokens = prompt_tail(prompt_token_ids).astype("<i4").tobytes()
        self._send(Submit(request_id, namespace, text, tokens))

    def poll(self, request_id: str) -> list[NearAnswer] | None:
        return self._read(lambda results: results.read(request_id), None)

    def progress(self) -> int:
        published = self._read(lambda results: results.num_published, 0)
        return (self._connections << 48) + published

    def found_s(self, request_id: str) -> float | None:
        return self._read(lambda results: results.found_s(request_id), None)

    def clauses(self, request_id: str) -> list[FoundClause]:
        found: list[FoundClause] = self._read(lambda results: results.clauses(request_id), [])
        return found

    def discard(self, request_id: str) -> None:
        self._send(Discard(request_id))

    def store(self, answer: Answer) -> None:
        try:
            record = encode_record(answer)
        except ValueError:
            logger.exception("Dropped an answer that cannot be encoded.")
            self._dropped += 1
            return
        self._send(Store(record))

    def record_usage(self, namespace: str, accepted_tokens: Mapping[str, int]) -> None:
        if accepted_tokens:
            self._send(RecordUsage(namespace, dict(accepted_tokens)))

    def forget(self, invalidation: Invalidation, *, timeout_s: float) -> Forgetting:
        """As `Retriever.forget`; sent again to every new process until one confirms it."""
        with self._changed:
            self._unconfirmed[invalidation.invalidation_id] = invalidation
            self._held.forget(invalidation)
        ticket = next(self._tickets)
        # The margin is for the way there and back.
        reply = self._ask(Forget(ticket, invalidation, timeout_s), ticket, timeout_s + 0.5)
        if not isinstance(reply, ForgetReply):
            return Forgetting((), done=False)
        return Forgetting(reply.removed, reply.done)

    def forgotten(self) -> list[Forgotten]:
        """Return what is to be forgotten wherever it is held, since the last call."""
        with self._changed:
            taken = list(self._forgotten)
            self._forgotten.clear()
            return taken

    @property
    def num_unconfirmed(self) -> int:
        """Invalidations that the tier has yet to carry out."""
        return len(self._unconfirmed)

    def updates(self) -> list[AnswerUpdate]:
        updates, missed = self._told.take()
        if missed:
            # Connecting again, it is sent all that is there.
            self._resyncs += 1
            if (sender := self._sender) is not None:
                sender.close()
        return updates

    def flush(self, timeout_s: float) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: self._sender is not None, timeout_s):
                return False
        ticket = next(self._tickets)
        reply = self._ask(Flush(ticket, timeout_s), ticket, timeout_s)
        return isinstance(reply, FlushReply) and reply.done

    def stats(self) -> RetrievalStats:
        stats, sender = self._status.stats, self._sender
        unsent = self._unsent + (0 if sender is None else sender.num_errors)
        errors = stats.errors + self._errors.num + self._odd_messages.num + unsent
        return replace(
            stats,
            dropped=stats.dropped + self._dropped,
            resyncs=stats.resyncs + self._resyncs,
            errors=errors,
        )

    def health(self) -> RetrievalHealth:
        if self._closing:
            return RetrievalHealth("closed")
        if self._sender is None:
            return RetrievalHealth(
                "degraded" if self._was_ready else "starting", detail="no retrieval process"
            )
        silent_s = time.monotonic() - self._heard_s
        if self._status.health.state != "starting" and silent_s > _MAX_SILENCE_S:
            detail = f"the retrieval process has not answered for {silent_s:.0f} s"
            return replace(self._status.health, state="degraded", detail=detail)
        return self._status.health

    def close(self) -> None:
        with self._changed:
            self._closing = True
            sender = self._sender
            self._changed.notify_all()
        if sender is not None:
            sender.close()
        self._thread.join(timeout=5.0)

    def _read(self, read: Callable[[ResultReader], Found], otherwise: Found) -> Found:
        """Read the shared results, if there are any; who asks is in the middle of a step."""
        with self._changed:
            if self._results is None:
                return otherwise
            try:
                return read(self._results)
            except Exception as error:  # a block that is not what its header says
                self._odd_messages.failed(error)
                return otherwise

    def _send(self, message: Request) -> bool:
        sender = self._sender
        if sender is None and isinstance(message, Store | Submit | Discard) and self._hold(message):
            return True
        try:
            sent = sender is not None and sender.send(message)
        except Exception:  # a text that has no encoding, say
            logger.exception("Dropped a message that cannot be encoded.")
            sent = False
        if not sent and not isinstance(message, Discard | RecordUsage | Forget):
            self._dropped += 1
        return sent

    def _hold(self, message: Store | Submit | Discard) -> bool:
        """Keep a prompt or an answer until there is a process to send it to; False if there is one
        already, or no room."""
        with self._changed:
            if self._sender is not None or self._closing:
                return False
            return self._held.put(message)

    def _ask(
        self, message: Request, ticket: int, timeout_s: float
    ) -> FlushReply | ForgetReply | None:
        with self._changed:
            self._awaited.add(ticket)
        try:
            if not self._send(message):
                return None
            with self._changed:
                self._changed.wait_for(
                    lambda: ticket in self._replies or self._sender is None, timeout_s
                )
                return self._replies.pop(ticket, None)
        finally:
            with self._changed:
                self._awaited.discard(ticket)

    def _run(self) -> None:
        while not self._closing:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                with short_address(self.address) as address:
                    connection.connect(address)
            except OSError:
                connection.close()
                self._pause(_RECONNECT_S)
                continue
            self._serve(connection)
            self._pause(_RECONNECT_S)

    def _pause(self, seconds: float) -> bool:
        """Wait; returns whether this client is to end."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, seconds)

    def _heard(self, pid: int, response: Response) -> None:
        """Take note, in the client's thread, of all that the process `pid` says."""

    def _serve(self, connection: socket.socket) -> None:
        """Take messages in until the process is gone.

        Raises:
            Exception: What it says when greeting is not understood, as with another version.
        """
        sender = Sender(connection, max_bytes=self._config.queue_bytes)
        sender.send(
            Hello(
                pinned_cores(os.getpid()),
                self._wants_updates,
                self._wants_forgotten,
                self._position,
                _BEGAN_S,
            )
        )
        self._told.begin()
        try:
            pid = peer_pid(connection)
            while (message := receive(connection)) is not None:
                try:
                    response = RESPONSES.decode(message)
                except msgspec.MsgspecError as error:  # a newer process may have more to say
                    self._odd_messages.failed(error)
                    continue
                self._heard_s = time.monotonic()
                self._heard(pid, response)
                self._handle(response, sender)
        finally:
            with self._changed:
                self._sender = None
                results, self._results = self._results, None
                if results is not None:
                    results.close()
                self._changed.notify_all()
            sender.close()
            connection.close()
            self._unsent += sender.num_errors

    def _handle(self, response: Response, sender: Sender) -> None:
        match response:
            case Welcome(block_name):
                self._welcomed(ResultReader(block_name), sender)
            case AnswerAdded(update):
                self._told.added(update)
            case AnswerRemoved(answer_id, namespace):
                self._told.removed(namespace, answer_id)
            case Status():
                if response.has_read:
                    # The first such status ends the list of what is there now.
                    self._told.end_of_list()
                self._status = response
                self._was_ready = self._was_ready or response.health.state != "starting"
            case InvalidationNotice(forgotten):
                self._is_to_forget(forgotten)
            case FlushReply(ticket) | ForgetReply(ticket):
                with self._changed:
                    if isinstance(response, ForgetReply) and response.done:
                        self._unconfirmed.pop(response.invalidation_id, None)
                    if ticket in self._awaited:
                        self._replies[ticket] = response
                        self._changed.notify_all()

    def _welcomed(self, results: ResultReader, sender: Sender) -> None:
        with self._changed:
            self._dropped += sum(not sender.send(message) for message in self._held.take())
            self._results, self._sender = results, sender
            # What an earlier process said of itself holds no more.
            self._status = Status(self._status.stats, RetrievalHealth("starting"))
            self._connections += 1
            for invalidation in self._unconfirmed.values():
                sender.send(Forget(next(self._tickets), invalidation, 0.0))
            if self._closing:
                sender.close()
            self._changed.notify_all()

    def _is_to_forget(self, forgotten: Forgotten) -> None:
        with self._changed:
            self._position = forgotten.position or self._position
            self._forgotten.append(forgotten)
            if len(self._forgotten) > _MAX_FORGOTTEN:
                # Nobody takes them: whoever does at last is to forget everything.
                self._forgotten.clear()
                self._forgotten.append(Forgotten(complete=False))
