"""Whatever waits between threads and processes is bounded in bytes, and what is lost is counted."""

import socket
import threading

import numpy as np
import pytest

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import Forgotten
from reprise.retrieval.host.socket_address import short_address
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.in_process.work_queue import Prompt, WorkQueue
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.near_search import NearSearch
from reprise.retrieval.service.retrieval_client import RetrievalClient
from reprise.retrieval.service.retrieval_server import RetrievalServer
from reprise.retrieval.service.wire import Hello, LaunchConfig, Sender, Store, Submit, receive
from reprise.retrieval.tiers.memory_tier import MemoryTier
from reprise.retrieval.tiers.record import encode_record
from reprise.retrieval.tiers.sync.memory_before import MemoryBefore
from reprise.retrieval.tiers.sync.tier_sync import TierSync
from reprise.retrieval.tiers.tier import TierError


def answer(number, *, size=20, namespace=""):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * size,
        prompt_text=f"question {number}",
        namespace=namespace,
        answer_id=f"id{number}",
    )


@pytest.fixture
def retriever():
    config = RetrievalConfig(
        embedding_model="lexical", clauses=False, queue_bytes=1 << 20, queue_length=100_000
    )
    retriever = LocalRetriever(config, embedder=Embedder("lexical"))
    yield retriever
    retriever.close()


def test_what_a_socket_does_not_take_is_refused():
    ours, theirs = socket.socketpair()
    sender = Sender(ours, max_bytes=1 << 20)
    message = Submit("r", "", None, b"\0" * (64 << 10))
    sent = sum(sender.send(message) for _ in range(100))
    # Sixteen wait, and the socket's buffers hold some.
    assert 15 <= sent <= 40
    received = 0
    while received < sent:
        assert receive(theirs) is not None
        received += 1
    assert sender.wait_for_room()
    assert sender.send(message)
    sender.close()
    assert not sender.send(message)
    assert not sender.wait_for_room()
    ours.close()
    theirs.close()


def test_prompts_and_answers_are_bounded_in_bytes():
    queue = WorkQueue(max_length=1000, max_bytes=100_000)
    ids = np.zeros(2000, np.int32)
    taken = sum(queue.put_prompt(Prompt(str(n), "", None, ids)) for n in range(100))
    assert taken == 11
    num_answers = 0
    while queue.takes_answers:
        queue.put_answers([answer(num_answers)], ours=True)
        num_answers += 1
    assert 50 < num_answers < 100
    assert len(queue.take(1000).prompts) == 11
    assert queue.put_prompt(Prompt("again", "", "x" * 90_000, None))
    assert not queue.put_prompt(Prompt("more", "", "x" * 10_000, None))
    assert queue.takes_answers


def test_answers_that_a_tier_does_not_take_are_bounded_in_bytes_and_counted(wait_until):
    class Refusing(MemoryTier):
        name = "refusing"

        def put(self, _):
            raise TierError("not now")

    sync = TierSync(
        Refusing(max_bytes=1 << 20),
        MemoryBefore(on_added=lambda _: None, on_forgotten=lambda _: None),
        queue_bytes=50 * answer(1).num_bytes,
    )
    sync.write(answer(number) for number in range(1000))
    wait_until(lambda: sync.unwritten >= 950 - 128)
    assert sync.unwritten <= 960
    # Once nothing is tried any more, closing does not wait for it to be written.
    wait_until(lambda: sync.breakers["write"] != "closed")
    sync.close(timeout_s=60.0)  # its thread may not have had a core yet
    assert sync.unwritten == 1000


def test_what_a_tier_trims_leaves_memory():
    class Trimming(MemoryTier):
        name = "trimming"

    removed = []
    sync = TierSync(
        Trimming(max_bytes=5 * answer(1).num_bytes),
        MemoryBefore(
            on_added=lambda _: None,
            on_forgotten=lambda forgotten: removed.extend(forgotten.removed),
        ),
    )
    sync.write(answer(number) for number in range(20))
    assert sync.drain(60)
    assert len(removed) >= 15
    sync.close()


def test_updates_that_had_no_room_are_told_later(retriever):
    for number in range(3000):
        retriever.store(answer(number, size=400))
        if number % 100 == 99:  # more would be more than may wait
            assert retriever.flush(60)
    assert retriever.stats().resyncs >= 1
    told, rounds = set(), 0
    while updates := retriever.updates():
        assert sum(len(u.response_tokens) for u in updates) < 3 << 20
        told |= {u.answer_id for u in updates}
        rounds += 1
    assert rounds > 1
    assert told == {a.answer_id for a in retriever.answers()}


def test_answers_evicted_before_their_turn_are_counted(monkeypatch):
    goes_on = threading.Event()
    search = NearSearch.join

    def late(*arguments):
        goes_on.wait(200)
        return search(*arguments)

    monkeypatch.setattr(NearSearch, "join", late)
    config = RetrievalConfig(embedding_model="lexical", clauses=False, memory_bytes=1 << 16)
    retriever = LocalRetriever(config, embedder=Embedder("lexical"))
    for number in range(500):
        retriever.store(answer(number))
    goes_on.set()
    assert retriever.flush(60)
    stats = retriever.stats()
    assert stats.answers < 30
    left = 500 - stats.answers
    # Those of the first batch may have had their turn before they left.
    assert left - 64 <= stats.evicted_early <= left
    retriever.close()


@pytest.fixture
def server(tmp_path):
    config = RetrievalConfig(embedding_model="lexical", clauses=False, queue_bytes=1 << 20)
    address = str(tmp_path / "socket")
    server = RetrievalServer(LaunchConfig(config.model_dump(), address, "reprise-test-bounds-", 0))
    stop = threading.Event()

    def pass_on():
        while not stop.wait(0.02):
            server._forward_updates()

    thread = threading.Thread(target=pass_on)
    thread.start()
    yield server, address, config
    stop.set()
    thread.join()
    server.close()


def fill(retriever, count):
    """Store answers, no more at a time than may wait."""
    for number in range(count):
        retriever.store(answer(number, size=500))
        if number % 200 == 199:
            assert retriever.flush(60)
    assert retriever.stats().answers == count


def ids_of(client, known):
    for update in client.updates():
        (known.add if update.added else known.discard)(update.answer_id)
    return known


def test_a_client_is_told_of_more_than_a_queue_holds(server, wait_until):
    server, address, config = server
    fill(server.retriever, 2000)
    client = RetrievalClient(address, config=config)
    known: set[str] = set()
    wait_until(lambda: len(ids_of(client, known)) == 2000)
    client.close()


def test_a_client_that_did_not_keep_up_ends_with_what_is_there(server, wait_until):
    server, address, config = server
    client = RetrievalClient(address, config=config)
    wait_until(lambda: client.health().state == "ready")
    fill(server.retriever, 3000)
    wait_until(lambda: client.stats().stored == 3000)
    for number in range(1000):
        server.retriever._forgotten(Forgotten(removed=(("", f"id{number}"),)))
    # Only now does anybody ask for updates.
    known: set[str] = set()
    there = {f"id{number}" for number in range(1000, 3000)}
    wait_until(lambda: ids_of(client, known) == there)
    wait_until(lambda: client.stats().resyncs >= 1)
    client.close()


def test_a_client_that_never_reads_is_heard_and_holds_nobody_up(server, wait_until):
    server, address, config = server
    fill(server.retriever, 3000)
    silent = socket.socket(socket.AF_UNIX)
    with short_address(address) as short:
        silent.connect(short)
    sender = Sender(silent, max_bytes=1 << 20)
    assert sender.send(Hello())
    assert sender.send(Store(encode_record(answer(5000))))
    wait_until(lambda: server.retriever.answer("", "id5000") is not None)
    client = RetrievalClient(address, config=config)
    known: set[str] = set()
    wait_until(lambda: len(ids_of(client, known)) == 3001)
    client.close()
    sender.close()
    silent.close()


def test_a_server_that_is_closed_takes_no_clients(tmp_path, wait_until):
    """Neither its own nor those of one that listens after it, under the same number."""
    config = RetrievalConfig(embedding_model="lexical", clauses=False)
    address = str(tmp_path / "socket")
    closed = RetrievalServer(LaunchConfig(config.model_dump(), address, "reprise-test-closed-", 0))
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(200)
    with short_address(address) as short:
        client.connect(short)
    sender = Sender(client, max_bytes=1 << 20)
    assert sender.send(Hello())
    wait_until(lambda: any(each.greeted for each in closed._clients))
    closed.close()
    while receive(client) is not None:
        pass
    sender.close()
    client.close()
    with socket.socket(socket.AF_UNIX) as late, short_address(address) as short:
        late.settimeout(200)
        with pytest.raises(ConnectionRefusedError):
            late.connect(short)


def test_who_wants_no_updates_has_none_listed(server, wait_until, monkeypatch):
    server, address, config = server
    fill(server.retriever, 10)
    listed, keys = [], MemoryTier.keys
    monkeypatch.setattr(MemoryTier, "keys", lambda tier: (listed.append(tier), keys(tier))[1])
    for wants_updates in (False, True):
        client = RetrievalClient(address, config=config, wants_updates=wants_updates)
        wait_until(lambda client=client: client.health().state == "ready")
        assert bool(listed) == wants_updates
        client.close()


@pytest.fixture
def held_back(server, monkeypatch):
    """A server that passes no updates on, but to whoever is greeted, until told to."""
    server, _, _ = server
    goes_on, forward = threading.Event(), server._forward_updates
    monkeypatch.setattr(server, "_forward_updates", lambda: goes_on.is_set() and forward())
    return goes_on


def greeted(server, address, wait_until):
    client = RetrievalClient(address)
    wait_until(lambda: any(each.greeted for each in server._clients))
    return client


def test_that_an_answer_left_which_joined_during_a_greeting_is_told(
    server, held_back, wait_until, monkeypatch
):
    server, address, _ = server
    fill(server.retriever, 1)
    keys = MemoryTier.keys
    storing = threading.Thread(target=server.retriever.store, args=(answer(7),))

    def join_and_list(tier):
        storing.start()
        storing.join(1.0)  # which waits where the list is made at the same time as the updates
        return keys(tier)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryTier, "keys", join_and_list)
        client = greeted(server, address, wait_until)
    storing.join()
    server.retriever._forgotten(Forgotten(removed=(("", "id7"),)))
    held_back.set()
    server.retriever.store(answer(8))
    known: set[str] = set()
    wait_until(lambda: "id8" in ids_of(client, known))
    assert known == {"id0", "id8"}
    client.close()


def test_that_an_answer_left_which_there_was_no_room_to_report_is_told(
    server, held_back, wait_until
):
    server, address, _ = server
    fill(server.retriever, 2000)
    client = greeted(server, address, wait_until)
    there = {f"id{number}" for number in range(2000)}
    for number in range(0, 2000, 100):
        server.retriever._forgotten(Forgotten(removed=(("", f"id{number}"),)))
        there.remove(f"id{number}")
    held_back.set()
    known: set[str] = set()
    wait_until(lambda: ids_of(client, known) >= there)
    server.retriever.store(answer(3000))
    wait_until(lambda: "id3000" in ids_of(client, known))
    assert known == there | {"id3000"}
    client.close()
