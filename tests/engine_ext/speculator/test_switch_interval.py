"""The thread that launches steps soon has the interpreter again that another thread computes in."""

import sys
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.speculator.device_speculator import SWITCH_INTERVAL_S, wake_soon

DEFAULT_S = 0.005


@pytest.fixture(autouse=True)
def interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(DEFAULT_S)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def busy() -> Iterator[None]:
    """A thread that computes in Python and lets go of the interpreter only when it is told to."""
    ended = threading.Event()

    def compute() -> None:
        while not ended.is_set():
            pass

    thread = threading.Thread(target=compute)
    thread.start()
    yield
    ended.set()
    thread.join()


def wait_many_times_s() -> float:
    """How long it takes to wait for next to nothing, as steps do for the device."""
    began_s = time.perf_counter()
    for _ in range(40):
        time.sleep(1e-5)
    return time.perf_counter() - began_s


@pytest.mark.usefixtures("busy")
def test_waiting_takes_a_fraction_of_what_it_does_by_default() -> None:
    by_default_s = wait_many_times_s()
    wake_soon()
    # The machine may stand still during one of them.
    assert min(wait_many_times_s() for _ in range(3)) < 0.6 * by_default_s


def test_an_interval_that_is_shorter_already_is_kept() -> None:
    wake_soon()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    sys.setswitchinterval(1e-5)
    wake_soon()
    assert sys.getswitchinterval() == pytest.approx(1e-5)
