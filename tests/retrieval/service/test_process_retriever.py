"""The retrieval process: the same seam, from two processes' points of view, and its death."""

import contextlib
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from reprise.retrieval import RetrievalConfig
from reprise.retrieval.host.owned_folder import remove_stale_folders
from reprise.retrieval.host.owner_lock import owner_prefix
from reprise.retrieval.service import retrieval_client
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.retrieval.service.retrieval_client import RetrievalClient
from reprise.tests.retrieval import numbered_answers

CONFIG = RetrievalConfig(embedding_model="lexical", clauses=False)
answer = partial(numbered_answers.answer, namespace="acme", size=20)


@pytest.fixture
def retriever(wait_until):
    retriever = ProcessRetriever(CONFIG)
    wait_until(lambda: retriever.health().state == "ready")
    yield retriever
    retriever.close()


@pytest.fixture
def client(retriever, wait_until):
    client = RetrievalClient(retriever.address)
    wait_until(lambda: client.health().state == "ready")
    yield client
    client.close()


def ask(who, request_id, text, wait_until, namespace="acme"):
    who.submit(request_id, namespace=namespace, text=text)
    wait_until(lambda: who.poll(request_id) is not None)
    return who.poll(request_id)


def test_owner_and_client_share_answers_and_results(retriever, client, wait_until):
    retriever.store(answer(1))
    client.store(answer(2))
    assert retriever.flush(200)
    assert client.flush(200)
    assert retriever.flush(200)  # what the client stored is on its way to the owner
    # One submits, the other polls: so a front end begins the search and a worker uses it.
    before = client.progress()
    retriever.submit("r", namespace="acme", text="question number 2")
    wait_until(lambda: client.progress() != before)
    assert [n.answer_id for n in client.poll("r")] == ["id2", "id1"]
    assert client.poll("r")[0].response_token_ids.tolist() == [2] * 20
    assert ask(client, "other", "question number 2", wait_until, namespace="zeta") == []
    for who in (retriever, client):
        assert {u.answer_id for u in who.updates() if u.added} == {"id1", "id2"}
        assert who.updates() == []
        assert who.stats().answers == 2


def test_killed_it_comes_back_with_its_answers(retriever, client, may_start, wait_until, caplog):
    for number in range(30):
        retriever.store(answer(number))
    assert retriever.flush(200)
    assert len(ask(client, "before", "question number 7", wait_until)) == 30
    assert client.flush(200)
    assert len(client.updates()) == 30
    killed, progress = retriever.pid, client.progress()
    may_start.clear()
    os.kill(killed, signal.SIGKILL)
    # While it is gone nothing waits, nothing raises.
    client.submit("lost", namespace="acme", text="question number 7")
    assert client.poll("lost") is None
    client.store(answer(99))
    client.record_usage("acme", {"id1": 5})
    may_start.set()
    wait_until(lambda: retriever.pid not in (None, killed))
    wait_until(lambda: client.health().state == "ready" and client.stats().answers >= 30)
    assert client.flush(200)  # they are indexed
    assert client.progress() > progress
    assert len(ask(client, "after", "question number 7", wait_until)) >= 30
    assert not [u for u in client.updates() if not u.added]
    assert retriever.restarts == 1
    wait_until(lambda: "The retrieval process is ready again, after" in caplog.text)
    told = [each for each in caplog.messages if each.startswith("The retrieval process")]
    assert len(told) == 2
    assert told[0] == "The retrieval process ended (status -9) and is started again."


def test_nothing_is_left_behind(wait_until):
    retriever = ProcessRetriever(CONFIG)
    wait_until(lambda: retriever.health().state == "ready")
    folder = Path(retriever.address).parent
    pid = retriever.pid
    assert list(Path("/dev/shm").glob(owner_prefix(os.getpid()) + "*"))
    retriever.close()
    assert not list(Path("/dev/shm").glob(owner_prefix(os.getpid()) + "*"))
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert retriever.health().state == "closed"


@pytest.mark.slow
def test_it_ends_with_its_owner_even_if_that_is_killed(wait_until):
    program = (
        "import time\n"
        "from reprise.retrieval import RetrievalConfig\n"
        "from reprise.retrieval.service.process_retriever import ProcessRetriever\n"
        "r = ProcessRetriever(RetrievalConfig(embedding_model='lexical', clauses=False))\n"
        "while r.health().state != 'ready': time.sleep(0.05)\n"
        "print(r.pid, r.address, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as owner:
        pid, address = owner.stdout.readline().split()
        assert Path(address).exists()
        owner.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert not Path(address).parent.exists()


def test_what_the_process_uses_is_not_removed_before_it_ends_too(retriever):
    retriever._folder._release()  # as if the owner were killed
    remove_stale_folders()
    assert Path(retriever.address).exists()


def test_a_client_of_nobody_neither_waits_nor_raises(tmp_path):
    client = RetrievalClient(str(tmp_path / "nowhere"))
    client.submit("r", namespace="", text="hello")
    client.store(answer(1))
    assert client.poll("r") is None
    assert client.flush(0.05) is False
    assert client.updates() == []
    assert client.stats().dropped == 0  # both wait
    assert client.health().state == "starting"
    client.close()


def test_answers_wait_for_the_process_as_many_as_fill_half_its_queue(may_start):
    config = RetrievalConfig(embedding_model="lexical", clauses=False, queue_length=16)
    may_start.clear()
    retriever = ProcessRetriever(config)
    try:
        assert retriever.health().state == "starting"
        for i in range(10):
            retriever.store(answer(i))
        assert retriever.stats().dropped == 2
        may_start.set()
        assert retriever.flush(200.0)
        found = {update.answer_id for update in retriever.updates()}
        assert found == {answer(i).answer_id for i in range(8)}
    finally:
        retriever.close()


def test_prompts_wait_for_the_process_as_many_as_fill_half_its_queue(may_start, wait_until):
    config = RetrievalConfig(embedding_model="lexical", clauses=False, queue_length=16)
    may_start.clear()
    retriever = ProcessRetriever(config)
    try:
        assert retriever.health().state == "starting"
        assert retriever.health().ready_after_s is None
        retriever.store(answer(1))
        for i in range(10):
            retriever.submit(f"r{i}", namespace="acme", text="question number 1")
        assert retriever.stats().dropped == 2
        retriever.discard("r3")  # over before its search began
        retriever.submit("r8", namespace="acme", text="question number 1")  # there is room again
        may_start.set()
        assert retriever.flush(200.0)
        for request_id in ("r0", "r7", "r8"):
            assert retriever.poll(request_id) is not None
        assert retriever.poll("r3") is retriever.poll("r9") is None
        assert retriever.stats().abandoned == 0
        wait_until(lambda: retriever.health().ready_after_s is not None)
        assert 0 < retriever.health().ready_after_s < 200
    finally:
        retriever.close()


def test_its_owner_tells_whether_it_is_there(retriever, may_start, wait_until, monkeypatch):
    monkeypatch.setattr(retrieval_client, "_MAX_SILENCE_S", 1.0)
    os.kill(retriever.pid, signal.SIGSTOP)
    wait_until(lambda: "has not answered" in retriever.health().detail)
    os.kill(retriever.pid, signal.SIGCONT)
    wait_until(lambda: retriever.health().state == "ready")
    may_start.clear()
    os.kill(retriever.pid, signal.SIGKILL)
    wait_until(lambda: retriever.health().detail == "no retrieval process")
    assert retriever.health().state == "degraded"
    may_start.set()
    wait_until(lambda: retriever.health().state == "ready")
    assert retriever.restarts == 1


def test_a_process_that_never_starts_is_no_start(monkeypatch, wait_until):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    retriever = ProcessRetriever(CONFIG)
    try:
        wait_until(lambda: retriever.restarts > 0)
        assert retriever.health().state == "degraded"
    finally:
        retriever.close()


def test_it_is_nice_with_all_its_threads_once_it_is_ready(retriever, wait_until):
    def niceness():
        found = set()
        for thread in os.listdir(f"/proc/{retriever.pid}/task"):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                found.add(os.getpriority(os.PRIO_PROCESS, int(thread)))
        return found

    # Whoever runs the tests may be nicer.
    wait_until(lambda: niceness() == {max(10, os.getpriority(os.PRIO_PROCESS, 0))})


def test_texts_are_searched_for_and_clauses_told_from_another_process(wait_until):
    retriever = ProcessRetriever(RetrievalConfig(embedding_model="lexical"))
    try:
        retriever.store(answer(1))
        retriever.store(answer(2))
        assert retriever.flush(200)
        texts = ["question number 2", "question number 1"]
        first, second = retriever.search(texts, namespace="acme", timeout_s=100)
        assert (first[0].answer_id, second[0].answer_id) == ("id2", "id1")
        compound = "How do I cancel my order and will I get a refund?"
        ask(retriever, "r", compound, wait_until)
        assert [clause.connective for clause in retriever.clauses("r")] == ["", "and"]
    finally:
        retriever.close()


def test_a_wrong_url_fails_in_the_owner():
    with pytest.raises(ValueError, match="cache URL must be"):
        ProcessRetriever(RetrievalConfig(url="nonsense"))
    with pytest.raises(ValueError, match="there is no folder /nowhere"):
        ProcessRetriever(RetrievalConfig(url="sqlite:///nowhere/answers.sqlite"))
