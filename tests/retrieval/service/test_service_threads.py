"""Threads of the retrieval process and of its clients outlive errors and connections that end."""

import contextlib
import os
import socket
import threading
import time

import msgspec
import pytest

from reprise.retrieval import RetrievalConfig, RetrievalHealth, RetrievalStats
from reprise.retrieval.host.socket_address import short_address
from reprise.retrieval.service import retrieval_client
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.retrieval.service.retrieval_client import RetrievalClient
from reprise.retrieval.service.retrieval_server import RetrievalServer
from reprise.retrieval.service.shared_results import ResultReader, ResultWriter
from reprise.retrieval.service.told_answers import ToldAnswers
from reprise.retrieval.service.wire import (
    RESPONSES,
    AnswerRemoved,
    LaunchConfig,
    Sender,
    Status,
    Welcome,
    receive,
)
from reprise.tests.retrieval.failing_once import failing_once
from reprise.tests.retrieval.numbered_answers import answer

CONFIG = RetrievalConfig(embedding_model="lexical", clauses=False)


def test_the_sender():
    ours, theirs = socket.socketpair()
    sender = Sender(ours, max_bytes=1 << 16)
    sender.send(AnswerRemoved("\ud800", ""))  # no UTF-8
    sender.send(AnswerRemoved("a", ""))
    assert RESPONSES.decode(receive(theirs)) == AnswerRemoved("a", "")
    assert sender.num_errors == 1
    assert sender.send(AnswerRemoved("b", ""))
    sender.close()
    theirs.close()
    ours.close()


def test_a_sender_whose_connection_fails_is_closed(wait_until):
    class Broken:
        def sendall(self, _):
            raise AssertionError("injected")

        def shutdown(self, _):
            pass

    sender = Sender(Broken(), max_bytes=1 << 16)
    assert sender.send(AnswerRemoved("a", ""))
    # Not queueing for ever: who sends is told, and connects again.
    wait_until(lambda: not sender.send(AnswerRemoved("b", "")))
    assert sender.num_errors == 1


@pytest.mark.parametrize("method", ["_handle", "added", "_welcomed", "removed"])
def test_the_client_connects_again(method, monkeypatch, wait_until, caplog):
    retriever = ProcessRetriever(CONFIG)
    client = None
    try:
        wait_until(lambda: retriever.health().state == "ready")
        retriever.store(answer(1))
        assert retriever.flush(60)
        owner = RetrievalClient if method.startswith("_") else ToldAnswers
        failing = failing_once(getattr(owner, method))
        client = RetrievalClient(retriever.address)
        wait_until(lambda: client.stats().answers == 1)
        monkeypatch.setattr(owner, method, lambda *a: failing(*a))
        if method == "_welcomed":
            client._sender.close()
        elif method == "removed":
            client._told._known.add(("", "gone"))  # left while there was no connection
            client._sender.close()
        else:
            retriever.store(answer(2))
        wait_until(lambda: client.stats().errors + retriever.stats().errors)
        wait_until(lambda: client.health().state == "ready")
        retriever.store(answer(3))
        assert retriever.flush(60)
        wait_until(lambda: any(u.answer_id == "id3" for u in client.updates()))
        assert "AssertionError: injected" in caplog.text
    finally:
        if client is not None:
            client.close()
        retriever.close()


def serve_once(folder, *messages):
    """A server that greets each client with these bytes; returns it and its address."""
    listener = socket.socket(socket.AF_UNIX)
    with short_address(str(folder / "socket")) as address:
        listener.bind(address)
    listener.listen()
    connections = []

    def serve():
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.append(connection)
                with contextlib.suppress(OSError):  # it may have left
                    for message in messages:
                        connection.sendall(len(message).to_bytes(4, "little") + message)

    threading.Thread(target=serve, daemon=True).start()
    return listener, connections


def test_messages_of_another_version_are_skipped(tmp_path, wait_until, caplog, monkeypatch):
    monkeypatch.setattr(retrieval_client, "_MAX_SILENCE_S", 600.0)  # nothing more is said
    writer = ResultWriter(f"reprise-test-{os.getpid()}-")
    status = Status(RetrievalStats(answers=3), RetrievalHealth("ready"))
    encode = msgspec.msgpack.encode
    messages = [
        encode(Welcome(writer.name)),
        encode({"type": "Gossip", "text": "of a newer version"}),
        b"\xc1 no MessagePack",
        encode({"type": "Status", "stats": 5}),
        encode(status),
    ]
    listener, connections = serve_once(tmp_path, *messages)
    client = RetrievalClient(str(tmp_path / "socket"))
    wait_until(lambda: client.stats().answers == 3)
    assert client.health().state == "ready"
    assert client.stats().errors == 3
    assert len(connections) == 1
    assert len([r for r in caplog.records if "Reading a message" in r.message]) == 1
    client.close()
    listener.close()
    writer.close()


def test_shared_results_of_another_layout_are_refused_with_one_line(tmp_path, wait_until, caplog):
    writer = ResultWriter(f"reprise-test-{os.getpid()}-")
    writer._memory[8] = 99  # the layout's version
    listener, connections = serve_once(tmp_path, msgspec.msgpack.encode(Welcome(writer.name)))
    began_s = time.monotonic()
    client = RetrievalClient(str(tmp_path / "socket"))
    wait_until(lambda: client.stats().errors >= 3)
    # Not as fast as it can: after 0.1 s, and each time after twice as long.
    num_connections = len(connections)
    assert time.monotonic() - began_s > 0.1 * (2 ** (num_connections - 1) - 1)
    assert client.poll("r") is None
    lines = [r.getMessage() for r in caplog.records if "retrieval process" in r.getMessage()]
    assert len(lines) == 1
    assert "expected a block of layout" in lines[0]
    client.close()
    listener.close()
    writer.close()


def test_results_that_cannot_be_read_are_none_and_counted(monkeypatch, wait_until):
    retriever = ProcessRetriever(CONFIG)
    try:
        wait_until(lambda: retriever.health().state == "ready")
        for name in ("read", "found_s"):
            monkeypatch.setattr(ResultReader, name, failing_once(lambda *_: None, 9))
        assert retriever.poll("r") is None
        assert retriever.found_s("r") is None
        assert retriever.stats().errors == 2
    finally:
        retriever.close()


def test_the_keeper(monkeypatch, wait_until, caplog):
    """Starting the process fails, as where there is no memory for a fork; then the watch does."""
    monkeypatch.setattr(ProcessRetriever, "_start", failing_once(ProcessRetriever._start, 2))
    monkeypatch.setattr(ProcessRetriever, "_watch", failing_once(ProcessRetriever._watch, 1))
    retriever = ProcessRetriever(CONFIG)
    try:
        wait_until(lambda: retriever.health().state == "ready")
        assert retriever.stats().errors >= 3
        assert len([r for r in caplog.records if "Starting the retrieval" in r.message]) == 1
        os.kill(retriever.pid, 9)
        wait_until(lambda: retriever.restarts == 1 and retriever.pid is not None)
    finally:
        pid = retriever.pid
        retriever.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.fixture
def server(tmp_path):
    launch = LaunchConfig(
        config=CONFIG.model_dump(),
        address=str(tmp_path / "socket"),
        block_prefix=f"reprise-test-{os.getpid()}-",
        owner_pid=os.getppid(),
    )
    server = RetrievalServer(launch)
    threading.Thread(target=server.serve, args=(os.getppid(),), daemon=True).start()
    yield server
    server.close()


@pytest.mark.parametrize("method", ["_forward_updates", "_handle", "_reply_to"])
def test_the_server(server, tmp_path, method, monkeypatch, wait_until):
    monkeypatch.setattr(server, method, failing_once(getattr(server, method)))
    client = RetrievalClient(str(tmp_path / "socket"))
    try:
        wait_until(lambda: client.health().state == "ready")
        client.flush(0.5)  # may be the one that fails
        client.store(answer(1))
        assert client.flush(60)
        wait_until(lambda: client.stats().answers == 1)
        wait_until(lambda: client.stats().errors == 1)
    finally:
        client.close()


@pytest.mark.usefixtures("server")
def test_a_client_whose_thread_fails_connects_again(tmp_path, monkeypatch, wait_until):
    from reprise.retrieval.service import retrieval_server

    monkeypatch.setattr(retrieval_server, "receive", failing_once(receive))
    client = RetrievalClient(str(tmp_path / "socket"))
    wait_until(lambda: client.health().state == "ready")
    wait_until(lambda: client.stats().errors == 1)
    client.close()


@pytest.mark.usefixtures("server")
def test_the_server_goes_on_accepting(tmp_path, monkeypatch, wait_until):
    """As where there are no file descriptors or threads left for a moment."""
    from reprise.retrieval.service import retrieval_server

    monkeypatch.setattr(retrieval_server, "_Client", failing_once(retrieval_server._Client, 2))
    client = RetrievalClient(str(tmp_path / "socket"))
    wait_until(lambda: client.health().state == "ready")
    wait_until(lambda: client.stats().errors == 2)
    client.close()


def test_a_reply_that_fails_is_a_reply(server, tmp_path, monkeypatch, wait_until):
    monkeypatch.setattr(server.retriever, "flush", failing_once(server.retriever.flush))
    client = RetrievalClient(str(tmp_path / "socket"))
    wait_until(lambda: client.health().state == "ready")
    began_s = time.monotonic()
    assert client.flush(60) is False
    assert time.monotonic() - began_s < 30
    assert client.flush(60) is True
    client.close()
