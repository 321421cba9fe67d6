"""Clients of retrieval hear of each invalidation that was made since they hold answers."""

import socket
import threading

import msgspec
import pytest

from reprise.retrieval import RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.service import retrieval_client
from reprise.retrieval.service.retrieval_client import RetrievalClient
from reprise.retrieval.service.retrieval_server import RetrievalServer
from reprise.retrieval.service.wire import LaunchConfig
from reprise.retrieval.tiers import change_log
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.tier import TierError
from reprise.tests.retrieval.numbered_answers import answer


@pytest.fixture
def other(tmp_path):
    tier = SqliteTier(tmp_path / "answers.sqlite")
    yield tier
    tier.close()


@pytest.fixture
def make_server(tmp_path):
    made = []

    def make():
        config = RetrievalConfig(
            url=f"sqlite:///{tmp_path}/answers.sqlite",
            embedding_model="lexical",
            clauses=False,
            poll_s=0.02,
        )
        address = str(tmp_path / "socket")
        made.append(RetrievalServer(LaunchConfig(config.model_dump(), address, "reprise-test-", 0)))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def client(tmp_path):
    """A client that waits for a server."""
    address = str(tmp_path / "socket")
    client = RetrievalClient(address, wants_updates=False, wants_forgotten=True)
    yield client
    client.close()


class Heard:
    """What a client has been told to forget so far, by the ids of answers."""

    def __init__(self, client):
        self.client = client
        self.ids, self.all = [], []

    def __call__(self):
        new = self.client.forgotten()
        self.all += new
        self.ids += [each.answer_id for forgotten in new for each in forgotten.invalidations]
        return self.ids


@pytest.fixture
def log(monkeypatch):
    """Set once the tier's log can be read."""
    is_readable, read = threading.Event(), SqliteTier.invalidations

    def invalidations(tier, after):
        if not is_readable.is_set():
            raise TierError("not now")
        return read(tier, after)

    monkeypatch.setattr(SqliteTier, "invalidations", invalidations)
    return is_readable


def made(answer_id, age_s=0.0):
    made_s = steady_clock.now_s() - age_s
    return msgspec.structs.replace(Invalidation.create(answer_id=answer_id), made_s=made_s)


def test_who_never_had_a_position_hears_what_was_made_since_it_began(
    monkeypatch, make_server, client, other, log, wait_until
):
    monkeypatch.setattr(retrieval_client, "_BEGAN_S", steady_clock.now_s() - 50)
    server, heard = make_server(), Heard(client)
    wait_until(lambda: server._clients)
    other.announce(made("before it began", 100))
    other.announce(made("since then", 10))
    log.set()
    wait_until(lambda: client._position == "2")
    other.announce(made("now"))
    wait_until(lambda: "now" in heard())
    assert heard.ids == ["since then", "now"]
    assert all(each.complete for each in heard.all)


def test_who_never_had_a_position_hears_of_a_log_that_was_trimmed_since_it_began(
    monkeypatch, make_server, client, other, log, wait_until
):
    monkeypatch.setattr(retrieval_client, "_BEGAN_S", steady_clock.now_s() - 50)
    monkeypatch.setattr(change_log, "_MAX_INVALIDATIONS", 3)
    server, heard = make_server(), Heard(client)
    wait_until(lambda: server._clients)
    for age_s in range(40, 30, -1):
        other.announce(made("since then", age_s))
    log.set()
    wait_until(lambda: len(heard()) == 4)
    unknown, oldest, *_ = heard.all[0].invalidations
    assert unknown.created_before_s == oldest.made_s
    assert unknown.covers("acme")


def test_a_position_is_taken_over_only_with_all_that_lies_before_it(
    monkeypatch, make_server, client, other, wait_until
):
    can_catch_up, catch_up = threading.Event(), LocalRetriever.invalidations
    # The first time it is no trouble of the tier's, which ends no thread either.
    errors = [RuntimeError("injected")]

    def invalidations(retriever, after):
        if not can_catch_up.is_set():
            raise errors.pop() if errors else TierError("not now")
        return catch_up(retriever, after)

    monkeypatch.setattr(LocalRetriever, "invalidations", invalidations)
    client._position = "0"
    heard = Heard(client)
    other.announce(made("while it was away"))
    server = make_server()
    wait_until(lambda: server.retriever.position == "1" and server._clients)
    other.announce(made("since then"))
    wait_until(lambda: "since then" in heard())
    assert client._position == "0"
    can_catch_up.set()
    wait_until(lambda: client._position == "2")
    wait_until(lambda: "while it was away" in heard())
    other.announce(made("later"))
    wait_until(lambda: client._position == "3")
    assert not errors


@pytest.fixture
def mirror(tmp_path):
    """A client that mirrors what is there."""
    client = RetrievalClient(str(tmp_path / "socket"))
    yield client
    client.close()


@pytest.fixture
def reading(monkeypatch):
    """Set while a tier can be read."""
    may_read, answers = threading.Event(), SqliteTier.answers
    may_read.set()

    def held(*arguments):
        for each in answers(*arguments):
            assert may_read.wait(60)
            yield each

    monkeypatch.setattr(SqliteTier, "answers", held)
    yield may_read
    may_read.set()


def restarted(server, make_server, mirror, wait_until):
    """Put another server in a server's place, as if that had been killed."""
    connections = mirror._connections
    server.close()
    another = make_server()
    for client in list(server._clients):
        client.connection.shutdown(socket.SHUT_RDWR)
    another._forward_updates()
    wait_until(lambda: mirror._connections > connections)
    return another


def hear(server, mirror, wait_until):
    """Have a client that is greeted sent updates and a status; returns the updates."""
    wait_until(lambda: all(client.greeted for client in server._clients))
    server._next_status_s = 0.0
    heard_s = mirror._heard_s
    server._forward_updates()
    wait_until(lambda: mirror._heard_s > heard_s)
    return {(update.answer_id, update.added) for update in mirror.updates()}


def test_what_a_process_has_yet_to_read_is_not_gone(
    make_server, mirror, other, reading, wait_until
):
    other.put([answer(1), answer(2)])
    server = make_server()
    assert server.retriever.wait_until_warm(60)
    wait_until(lambda: server._clients)
    assert hear(server, mirror, wait_until) == {("id1", True), ("id2", True)}
    other.remove("", ["id2"])
    reading.clear()
    server = restarted(server, make_server, mirror, wait_until)
    assert hear(server, mirror, wait_until) == set()
    reading.set()
    assert server.retriever.wait_until_warm(60)
    assert hear(server, mirror, wait_until) == {("id2", False)}


@pytest.mark.parametrize("when", ["while it is down", "while it reads"])
def test_what_was_forgotten_goes_whether_or_not_all_was_read(
    make_server, mirror, other, reading, wait_until, when
):
    other.put([answer(1), answer(2)])
    server = make_server()
    assert server.retriever.wait_until_warm(60)
    wait_until(lambda: server._clients)
    assert hear(server, mirror, wait_until) == {("id1", True), ("id2", True)}
    reading.clear()
    invalidation = Invalidation.create(answer_id="id2")
    if when == "while it is down":
        other.announce(invalidation)
    server = restarted(server, make_server, mirror, wait_until)
    if when == "while it reads":
        assert hear(server, mirror, wait_until) == set()
        server.retriever.forget(invalidation, timeout_s=0.0)
    wait_until(lambda: server.retriever.has_read)
    assert ("id2", False) in hear(server, mirror, wait_until)
