"""Reads small parts of the device's memory back without waiting for it in a step."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.speculator import page_locked

_QUEUE_LENGTH = 4096

Receiver = Callable[[list[NDArray[Any]]], None]


class _Copy(NamedTuple):
    copied: torch.cuda.Event | None
    """None: it is there."""
    values: list[torch.Tensor]
    receiver: Receiver


class ReadBack:
    """Copies as of now, in the order of the stream, and hands them over in one thread of its own.

    Args:
        device: what is read.
        errors: counts what receivers raise, and copies that were dropped.
    """

    def __init__(self, device: torch.device, *, errors: ErrorCounter) -> None:
        self._device = device
        self._errors = errors
        self._queue: queue.Queue[_Copy] = queue.Queue(_QUEUE_LENGTH)
        # A daemon: it ends with the worker, and what waits then is lost.
        threading.Thread(target=self._run, name="reprise-read-back", daemon=True).start()

    def send(self, parts: Sequence[torch.Tensor], receiver: Receiver) -> None:
        """Copy tensors, and call `receiver` with them when they are there."""
        if self._queue.full():
            self._errors.record("read back: queue full", queue.Full())
            return
        values = [page_locked.empty(part.shape, part.dtype, self._device) for part in parts]
        for value, part in zip(values, parts, strict=True):
            value.copy_(part, non_blocking=True)
        copied = None
        if self._device.type == "cuda":
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record()
        self._queue.put_nowait(_Copy(copied, values, receiver))

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was sent so far has been received."""
        deadline = time.monotonic() + timeout_s
        while self._queue.unfinished_tasks:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def _run(self) -> None:
        if self._device.type == "cuda":
            # A thread begins on the first GPU, and would open a context there, another rank's.
            torch.cuda.set_device(self._device)
        while True:
            copy = self._queue.get()
            with self._errors.recording("read back"):
                if copy.copied is not None:
                    copy.copied.synchronize()
                copy.receiver([value.numpy() for value in copy.values])
            self._queue.task_done()
