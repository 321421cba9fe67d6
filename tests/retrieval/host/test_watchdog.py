"""What tells a process that hangs from one that is slow, and a real one that is stopped."""

import os
import signal
import threading
import time

import pytest

from reprise.retrieval import RetrievalConfig
from reprise.retrieval.host import watchdog
from reprise.retrieval.host.watchdog import MAX_SILENCE_S, MAX_START_S, Watchdog
from reprise.retrieval.service import process_retriever
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.retrieval.service.retrieval_client import RetrievalClient
from reprise.tests.retrieval.numbered_answers import answer

CONFIG = RetrievalConfig(embedding_model="lexical", clauses=False)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def hangs_after(dog, clock, most_s, step_s=0.1):
    """Seconds until the process counts as hanging; None if it does not by `most_s`."""
    began_s = clock.now_s
    while clock.now_s - began_s < most_s:
        clock.now_s += step_s
        if dog.hangs():
            return clock.now_s - began_s
    return None


def test_silence_counts_from_the_last_sign_of_life(clock):
    dog = Watchdog(clock=clock)
    dog.watch(1)
    dog.heard(1, is_loaded=True)
    assert hangs_after(dog, clock, MAX_SILENCE_S - 1) is None
    dog.heard(1, is_loaded=True)
    assert hangs_after(dog, clock, 100) == pytest.approx(MAX_SILENCE_S, abs=0.2)


def test_loading_the_model_may_take_minutes(clock):
    dog = Watchdog(clock=clock)
    dog.watch(1)
    dog.heard(1, is_loaded=False)
    assert hangs_after(dog, clock, MAX_START_S - 1) is None
    assert hangs_after(dog, clock, 2) is not None


def test_what_an_earlier_process_said_counts_for_nothing(clock):
    dog = Watchdog(clock=clock)
    dog.watch(1)
    dog.heard(1, is_loaded=True)
    dog.watch(2)
    dog.heard(1, is_loaded=True)  # read late from the old socket
    assert hangs_after(dog, clock, MAX_START_S - 1) is None


def test_the_owners_own_standstill_is_not_the_processs(clock):
    """The machine slept, or both were stopped: one look after an hour."""
    dog = Watchdog(clock=clock)
    dog.watch(1)
    dog.heard(1, is_loaded=True)
    clock.now_s += 3600
    assert not dog.hangs()
    assert hangs_after(dog, clock, 100) is not None


def test_a_stopped_process_is_killed_and_started_again(monkeypatch, wait_until, caplog):
    retriever = ProcessRetriever(CONFIG)
    client = RetrievalClient(retriever.address)  # as a worker has one
    try:
        wait_until(lambda: retriever.health().state == client.health().state == "ready")
        client.store(answer(1, size=20))
        assert client.flush(60)
        stopped = retriever.pid
        os.kill(stopped, signal.SIGSTOP)
        # Only now: one that goes on may be silent for as long on a busy machine.
        for module in (watchdog, process_retriever):
            monkeypatch.setattr(module, "MAX_SILENCE_S", 3.0)
        # Meanwhile nobody waits: what is asked for is queued or missed.
        waits_s = []
        while retriever.hangs == 0:
            began_s = time.monotonic()
            for who in (retriever, client):
                who.submit("r", namespace="", text="question number 1")
                who.poll("r")
                who.progress()
                who.store(answer(2, size=20))
                who.updates()
                who.stats()
            waits_s.append(time.monotonic() - began_s)
            time.sleep(0.01)
        monkeypatch.setattr(watchdog, "MAX_SILENCE_S", MAX_SILENCE_S)
        # Who waits does so each time; the machine may stand still now and then.
        assert sorted(waits_s)[len(waits_s) * 9 // 10] < 1.0
        wait_until(lambda: retriever.pid not in (None, stopped))
        wait_until(lambda: client.health().state == "ready" and client.stats().answers >= 1)
        client.submit("again", namespace="", text="question number 1")
        wait_until(lambda: client.poll("again"))
        wait_until(lambda: retriever.stats().restarts == 1)
        assert retriever.stats().hangs == 1
        lines = [r.message for r in caplog.records if "started again" in r.message]
        assert lines == [
            "The retrieval process did not answer for 3 s: it was killed and is started again."
        ]
    finally:
        client.close()
        retriever.close()


@pytest.mark.slow
def test_a_slow_process_is_left_alone(monkeypatch, wait_until):
    """It runs a quarter of the time, in pieces shorter than what it is allowed to be silent."""
    for module in (watchdog, process_retriever):
        monkeypatch.setattr(module, "MAX_SILENCE_S", 8.0)
    retriever = ProcessRetriever(CONFIG)
    try:
        wait_until(lambda: retriever.health().state == "ready")
        pid, over = retriever.pid, threading.Event()

        def slow_down():
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                over.wait(0.3)
                os.kill(pid, signal.SIGCONT)
                # Long enough to get a core where others, less nice, want it too.
                over.wait(0.1)

        thread = threading.Thread(target=slow_down)
        thread.start()
        time.sleep(10.0)
        over.set()
        thread.join()
        assert (retriever.pid, retriever.hangs, retriever.restarts) == (pid, 0, 0)
    finally:
        retriever.close()
