"""Who gets the lock when a step waits for it."""

import threading
import time
from types import SimpleNamespace

import pytest

from reprise.spec.runtime import step_lock
from reprise.spec.runtime.step_lock import StepLock


def test_others_pause_for_a_step_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = StepLock()
    stepped = threading.Event()
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        assert stepped.wait(30.0)  # the step has the lock now: it was given back before

    def step() -> None:
        with lock:
            stepped.set()

    # Of this module alone: another test's thread may sleep meanwhile.
    monkeypatch.setattr(step_lock, "time", SimpleNamespace(sleep=pause))
    with lock.giving_way, lock.giving_way:
        pass
    assert not pauses
    thread = threading.Thread(target=step)
    with lock.giving_way:
        thread.start()
        deadline_s = time.monotonic() + 30.0
        while not lock.is_wanted and time.monotonic() < deadline_s:
            threading.Event().wait(0.001)
    thread.join()
    assert pauses == [step_lock.GIVE_WAY_S]
    assert not lock.is_wanted


def test_a_step_may_enter_again_and_an_error_gives_the_lock_back() -> None:
    lock = StepLock()
    for way in (lock, lock.giving_way):
        with pytest.raises(ZeroDivisionError), way, lock:
            raise ZeroDivisionError
    done = threading.Event()

    def step() -> None:
        with lock:
            done.set()

    threading.Thread(target=step).start()
    assert done.wait(30.0)
