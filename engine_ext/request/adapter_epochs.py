"""Tracks which state of an adapter's weights an answer belongs to."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


class AdapterEpochs:
    """Counts the changes of each adapter in this process.

    vLLM's requests for an adapter that was loaded in place go on saying `load_inplace`, and the
    worker then reads its files again whenever such a request is scheduled. So answers of such an
    adapter belong to its files as they are, and only what this process saw being loaded has any.
    """

    def __init__(self) -> None:
        self._epochs: Counter[int] = Counter()
        self._changing: Counter[int] = Counter()
        self._loaded_here: set[int] = set()
        self._began_s: dict[int, float] = {}

    @contextmanager
    def change(self, adapter_id: int, *, loads: bool) -> Iterator[None]:
        """Load or remove an adapter in this block; no answer from before its end is repeated."""
        self._epochs[adapter_id] += 1
        self._changing[adapter_id] += 1
        self._began_s[adapter_id] = time.time()
        self._loaded_here.discard(adapter_id)
        try:
            yield
            if loads:
                self._loaded_here.add(adapter_id)
        finally:
            self._changing[adapter_id] -= 1
            self._epochs[adapter_id] += 1

    def refusal(self, adapter: "LoRARequest") -> str | None:
        """Return why no answer of this adapter is exact now; None: it may be."""
        adapter_id = adapter.lora_int_id
        if self._changing[adapter_id]:
            return "an adapter that is being reloaded"
        if adapter.load_inplace and adapter_id not in self._loaded_here:
            return "an adapter that every request reloads"
        return None

    def loaded_since_s(self, adapter_id: int, otherwise_s: float) -> float:
        """Return the time of day when an adapter's last loading here began, or `otherwise_s`."""
        return self._began_s.get(adapter_id, otherwise_s)

    def key(self, adapter: "LoRARequest") -> str:
        """Return a name for the adapter and the state of its weights."""
        files = files_of(adapter.lora_path) if adapter.load_inplace else ()
        return f"{adapter.lora_int_id}:{self._epochs[adapter.lora_int_id]}:{files}"


def files_of(path: str) -> tuple[tuple[str, int, int], ...]:
    """Return names, sizes and times of the files in a folder; none if it is no folder here."""
    try:
        with os.scandir(path) as entries:
            stats = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
