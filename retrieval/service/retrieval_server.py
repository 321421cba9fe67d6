"""A local retriever behind a Unix socket, for the clients of a retrieval process."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np

from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.invalidation import Forgotten
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.api.retriever import RetrievalStats
from reprise.retrieval.host.loop_errors import LoopErrors, keep_going
from reprise.retrieval.host.niceness import be_nice
from reprise.retrieval.host.pinned_cores import leave_cores
from reprise.retrieval.host.private_files import PRIVATE
from reprise.retrieval.host.shared_block import free_bytes
from reprise.retrieval.host.socket_address import short_address
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.query.prompt_tokenizer import PromptTokenizer
from reprise.retrieval.service.shared_results import ResultWriter
from reprise.retrieval.service.wire import (
    REQUESTS,
    AnswerAdded,
    AnswerRemoved,
    Discard,
    Flush,
    FlushReply,
    Forget,
    ForgetReply,
    Hello,
    InvalidationNotice,
    LaunchConfig,
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
from reprise.retrieval.tiers.record import decode_record
from reprise.retrieval.tiers.tier import TierError

logger = logging.getLogger(__name__)
_UPDATE_S = 0.05
_STATUS_S = 0.5
# Whoever decodes goes first where cores are few, but not while the embedding model is loaded: on a
# busy machine that would take minutes, in which no request has near answers.
_NICENESS = 10
_FORGET_AGAIN_S = 60.0
# Answers read together when a client connects.
_GREETING_PAGE = 32
_MIN_SHARED_BYTES = 1 << 20
# A process that takes another one's place may be told less than that of what is there.
_MAX_READING_S = 30.0


class _Client:
    """One connection."""

    def __init__(self, connection: socket.socket, *, queue_bytes: int) -> None:
        self.connection = connection
        self.sender = Sender(connection, max_bytes=queue_bytes)
        self.wants_updates = True
        self.wants_forgotten = False
        self.greeted = False
        """Whether it was sent all that was there when it came."""
        self.has_caught_up = False
        """Whether it was sent what was to be forgotten before it came."""


class RetrievalServer:
    """Serves clients at `launch.address` until closed."""

    def __init__(self, launch: LaunchConfig) -> None:
        config = RetrievalConfig.model_validate(launch.config)
        self._writer = _writer(launch.block_prefix, config.shared_bytes)
        tokenizer = _tokenizer(launch.tokenizer)
        self._clients: list[_Client] = []
        self._lock = threading.Lock()
        self.retriever = LocalRetriever(
            config,
            decode=tokenizer.decode if tokenizer else None,
            query_of=tokenizer.query_of if tokenizer else None,
            tokenizer_key=launch.tokenizer_key,
            threads=config.embedding_threads,
            began_s=launch.began_s,
            on_found=self._publish,
            on_gone=self._writer.remove,
            on_erased=self._writer.erase,
            on_forgotten=self._forward_forgotten,
        )
        self._queue_bytes = config.queue_bytes
        self._resyncs = 0
        self._next_status_s = 0.0
        self._began_s = time.monotonic()
        self._errors = {
            name: LoopErrors(doing)
            for name, doing in (
                ("update", "Sending updates to the clients of retrieval"),
                ("accept", "Accepting clients of retrieval"),
                ("message", "Reading a message to retrieval"),
                ("reply", "Replying to a client of retrieval"),
                ("forgotten", "Telling a client of retrieval what was forgotten"),
            )
        }
        self._closing = threading.Event()
        with contextlib.suppress(OSError):
            os.unlink(launch.address)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_address(launch.address) as address:
            self._listener.bind(address)
        os.chmod(launch.address, PRIVATE)
        self._listener.listen()
        self._accepting = threading.Thread(
            target=keep_going,
            args=(self._accept, self._errors["accept"]),
            kwargs={"pause": self._closing.wait},
            name="reprise-accept",
            daemon=True,
        )
        self._accepting.start()

    def serve(self, owner_pid: int) -> None:
        """Forward updates until the owner is gone."""
        is_nice = False
        while os.getppid() == owner_pid:
            time.sleep(_UPDATE_S)
            if not is_nice and self.retriever.health().state != "starting":
                is_nice = True
                be_nice(_NICENESS)
            try:
                self._forward_updates()
            except Exception as error:
                time.sleep(self._errors["update"].failed(error))

    def close(self) -> None:
        """Write what is to be written, and leave nothing behind."""
        self._closing.set()
        # Closed under a thread that waits for clients, it goes on listening; and where the process
        # stands still, the thread takes the clients of whatever has its number then.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self.retriever.close()
        with self._lock:
            for client in self._clients:
                client.sender.close()
        self._writer.close()

    def _stats(self) -> RetrievalStats:
        stats = self.retriever.stats()
        return replace(stats, errors=stats.errors + sum(e.num for e in self._errors.values()))

    def _publish(
        self,
        request_id: str,
        namespace: str,
        near_answers: list[NearAnswer],
        clauses: list[FoundClause],
    ) -> None:
        self._writer.publish(request_id, near_answers, namespace=namespace, clauses=clauses)
        self.retriever.discard(request_id)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closing.is_set():
                    return
                raise
            try:
                client = _Client(connection, queue_bytes=self._queue_bytes)
                threading.Thread(
                    target=self._listen, args=(client,), name="reprise-client", daemon=True
                ).start()
            except BaseException:
                connection.close()  # it will try again
                raise

    def _listen(self, client: _Client) -> None:
        try:
            while (message := receive(client.connection)) is not None:
                try:
                    self._handle(client, REQUESTS.decode(message))
                except Exception as error:  # one bad message must not end the service
                    self._errors["message"].failed(error)
                    if not client.greeted:
                        return  # it waits for a greeting, and connects again for one
        except Exception as error:
            self._errors["message"].failed(error)
        finally:
            with self._lock:
                if client in self._clients:
                    self._clients.remove(client)
            client.sender.close()
            client.connection.close()

    def _handle(self, client: _Client, message: Request) -> None:
        match message:
            case Hello():
                leave_cores(message.pinned_cores)
                self._greet(client, message)
            case Submit(request_id, namespace, text, prompt_tokens):
                ids = np.frombuffer(prompt_tokens, dtype="<i4")
                self.retriever.submit(
                    request_id, namespace=namespace, text=text, prompt_token_ids=ids
                )
            case Store(record):
                self.retriever.store(decode_record(record))
            case Discard(request_id):
                self.retriever.discard(request_id)
            case RecordUsage(namespace, accepted_tokens):
                self.retriever.record_usage(namespace, accepted_tokens)
            case Flush() | Forget():
                # These wait; what the client says next must not.
                threading.Thread(
                    target=self._reply, args=(client, message), name="reprise-reply", daemon=True
                ).start()

    def _greet(self, client: _Client, hello: Hello) -> None:
        """Send a client what it wants: all answers, at its own pace, and what happens meanwhile."""
        keys: list[tuple[str, str]] = []
        with self._lock:
            if hello.wants_updates:
                updates, keys = self.retriever.updates_and_keys()
                self._broadcast(updates)
            client.wants_updates = hello.wants_updates
            client.wants_forgotten = hello.wants_forgotten
            client.sender.send(Welcome(self._writer.name))
            self._clients.append(client)
        # What the client sends meanwhile must not wait for what it is sent.
        threading.Thread(
            target=self._send_all, args=(client, keys), name="reprise-greeting", daemon=True
        ).start()
        if hello.wants_forgotten:
            threading.Thread(
                target=keep_going,
                args=(partial(self._catch_up, client, hello), self._errors["forgotten"]),
                kwargs={"pause": self._closing.wait},
                name="reprise-forgotten",
                daemon=True,
            ).start()

    def _send_all(self, client: _Client, keys: list[tuple[str, str]]) -> None:
        """Send these answers, as many as are still there; the status after them ends the list."""
        for begin in range(0, len(keys), _GREETING_PAGE):
            if not client.sender.wait_for_room():
                return
            # Under the lock: an answer that leaves now is sent before its removal.
            with self._lock:
                for key in keys[begin : begin + _GREETING_PAGE]:
                    answer = self.retriever.answer(*key)
                    if answer is not None:
                        self._send(client, AnswerAdded(AnswerUpdate.addition(answer)))
        with self._lock:
            client.greeted = True
            self._next_status_s = 0.0

    def _catch_up(self, client: _Client, hello: Hello) -> None:
        """Send a client what was to be forgotten while it was away, or since it holds anything."""
        while client in self._clients:
            # What is read of the log from here on is passed on.
            if self.retriever.position is not None:
                with contextlib.suppress(TierError):
                    page = self.retriever.invalidations(hello.position)
                    if hello.position is None:
                        page = page.made_since(hello.since_s)
                    forgotten = Forgotten(page.invalidations, (), page.position, page.complete)
                    with self._lock:
                        self._send(client, InvalidationNotice(forgotten))
                        client.has_caught_up = True
                    return
            time.sleep(_UPDATE_S)

    def _forward_forgotten(self, forgotten: Forgotten) -> None:
        """Send it to all clients; how far it goes only to those that have all that lies before."""
        early = msgspec.structs.replace(forgotten, position=None)
        with self._lock:
            for client in self._clients:
                if client.wants_forgotten:
                    notice = forgotten if client.has_caught_up else early
                    self._send(client, InvalidationNotice(notice))

    def _forget(self, client: _Client, message: Forget) -> None:
        waits_s = message.timeout_s
        while client in self._clients:
            outcome = self.retriever.forget(message.invalidation, timeout_s=waits_s)
            client.sender.send(
                ForgetReply(
                    message.ticket,
                    message.invalidation.invalidation_id,
                    outcome.removed,
                    outcome.done,
                )
            )
            if outcome.done:
                return
            waits_s = _FORGET_AGAIN_S

    def _reply(self, client: _Client, message: Flush | Forget) -> None:
        try:
            self._reply_to(client, message)
        except Exception as error:
            self._errors["reply"].failed(error)
            client.sender.send(FlushReply(message.ticket, False))

    def _reply_to(self, client: _Client, message: Flush | Forget) -> None:
        if isinstance(message, Forget):
            self._forget(client, message)
            return
        deadline_s = time.monotonic() + message.timeout_s
        done = self.retriever.flush(message.timeout_s)
        # What was stored before it was greeted is part of the greeting.
        while not client.greeted and client in self._clients:
            if time.monotonic() > deadline_s:
                done = False
                break
            time.sleep(_UPDATE_S)
        self._next_status_s = 0.0
        self._forward_updates()
        client.sender.send(FlushReply(message.ticket, done))

    def _forward_updates(self) -> None:
        with self._lock:
            # Before the updates: what was read by then is among them.
            has_read = self.retriever.has_read or (
                time.monotonic() - self._began_s > _MAX_READING_S
            )
            self._broadcast(self.retriever.updates())
            if time.monotonic() >= self._next_status_s:
                self._next_status_s = time.monotonic() + _STATUS_S
                stats = self._stats()
                stats = replace(stats, resyncs=stats.resyncs + self._resyncs)
                status = Status(stats, self.retriever.health(), has_read)
                for client in self._clients:
                    # The first one may say that all that was there has been sent.
                    if client.greeted:
                        client.sender.send(status)

    def _broadcast(self, updates: list[AnswerUpdate]) -> None:
        """Send updates to all clients; the caller holds the lock."""
        for update in updates:
            answer = self.retriever.answer(update.namespace, update.answer_id)
            for client in self._clients:
                if not client.wants_updates:
                    continue
                message: Response = AnswerRemoved(update.answer_id, update.namespace)
                if update.added:
                    if answer is None:
                        continue  # gone already
                    message = AnswerAdded(AnswerUpdate.addition(answer))
                self._send(client, message)

    def _send(self, client: _Client, message: Response) -> None:
        """Send what must not be missed: a client that has no room for it connects again, and is
        sent all that is there."""
        if not client.sender.send(message) and not client.sender.closed:
            self._resyncs += 1
            logger.warning(
                "A client does not keep up with the updates: it reconnects and gets all again."
            )
            client.sender.close()


def _tokenizer(name: str | None) -> PromptTokenizer | None:
    if name is None:
        return None
    try:
        return PromptTokenizer(name)
    except Exception as error:  # tokenizers raise what they like
        logger.warning("No tokenizer %r (%s): prompts without text find nothing.", name, error)
        return None


def _writer(prefix: str, num_bytes: int) -> ResultWriter:
    """Return a block of shared memory, smaller where there is no room for it.

    Raises:
        OSError: There is next to no shared memory.
    """
    wanted = num_bytes
    # All of the block is taken at once; half of what is free is left to vLLM's own rings.
    while num_bytes > max(_MIN_SHARED_BYTES, free_bytes() // 2):
        num_bytes //= 2
    writer = ResultWriter(prefix, num_bytes=max(num_bytes, _MIN_SHARED_BYTES))
    if num_bytes < wanted:
        logger.warning(
            "Shared memory is short: near answers share %.0f MiB of it, not %.0f as configured "
            "(docker run --shm-size=1g).",
            num_bytes / 2**20,
            wanted / 2**20,
        )
    return writer
