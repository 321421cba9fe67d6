"""What is read back comes in order, and an error in one receiver concerns no other."""

import threading
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.speculator import read_back
from reprise.engine_ext.speculator.read_back import ReadBack


def test_values_are_those_of_when_they_were_sent() -> None:
    errors = ErrorCounter()
    made = ReadBack(torch.device("cpu"), errors=errors)
    device = torch.zeros(3, dtype=torch.int32)
    seen: list[list[int]] = []
    for number in range(5):
        device.fill_(number)
        made.send([device, device[:1]], lambda values: seen.append(values[0].tolist()))
    assert made.flush(60)
    assert seen == [[number] * 3 for number in range(5)]
    assert errors.counts() == {}


def test_a_receiver_that_fails_ends_nothing() -> None:
    errors = ErrorCounter()
    made = ReadBack(torch.device("cpu"), errors=errors)
    seen: list[Any] = []

    def fail(_: Any) -> None:
        raise AssertionError("injected")

    made.send([], fail)
    made.send([], seen.append)
    assert made.flush(60)
    assert seen == [[]]
    assert errors.counts() == {"read back": 1}


def test_what_it_cannot_keep_up_with_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(read_back, "_QUEUE_LENGTH", 1)
    errors = ErrorCounter()
    made = ReadBack(torch.device("cpu"), errors=errors)
    go_on, begun = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        begun.set()
        assert go_on.wait(60)

    made.send([], wait)
    assert begun.wait(60)
    assert not made.flush(0.01)
    made.send([], lambda _: None)
    made.send([], lambda _: None)
    go_on.set()
    assert made.flush(60)
    assert errors.counts() == {"read back: queue full": 1}


def test_its_thread_is_on_the_device_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread begins on the first device, and opens a context there with what it asks."""
    calls: list[Any] = []
    received = threading.Event()

    class Event:
        def __init__(self, *, blocking: bool) -> None:
            assert blocking

        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            calls.append(("synchronize", threading.current_thread().name))

    def set_device(device: Any) -> None:
        calls.append((device, threading.current_thread().name))

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    made = ReadBack(torch.device("cuda", 3), errors=ErrorCounter())
    made.send([], lambda _: received.set())
    assert received.wait(60)
    name = "reprise-read-back"
    assert calls == [(torch.device("cuda", 3), name), ("synchronize", name)]
