"""A KV connector whose store is a folder: full blocks are saved once they are computed, and loaded
for requests that begin with the same tokens.

vLLM loads it by `kv_connector_module_path`, and `kv_connector_extra_config` names the `folder`.
Every second request is loaded for between steps: that takes `_LOAD_STEPS` of them, in which it
waits. For the others blocks are loaded at the beginning of a step. The folder's file `failing` says
how many of the next loads fail, at their middle block. A block that has failed holds numbers that
were never computed: no answer survives them. Each load is a line in the folder's file `events`:
`load` or `load failed`, with ` between steps` behind it or not.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

_LOAD_STEPS = 3


class Transfer(NamedTuple):
    """Blocks of one request, each with the name that it has in the folder."""

    request_id: str
    names: list[str]
    block_ids: list[int]
    is_async: bool = False
    """It takes place between steps."""


@dataclass
class Transfers(KVConnectorMetadata):
    """What the worker is to do in one step."""

    loads: list[Transfer] = field(default_factory=list)
    saves: list[Transfer] = field(default_factory=list)


class Folder:
    """The store, as both sides of the connector and the tests see it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def block(self, name: str) -> Path:
        """Return the file of a block."""
        return self.path / f"{name}.pt"

    def note(self, event: str) -> None:
        """Write down that something happened."""
        with (self.path / "events").open("a") as events:
            events.write(event + "\n")

    def take_events(self) -> list[str]:
        """Return what has happened since the last call."""
        events = self.path / "events"
        lines = events.read_text().splitlines() if events.exists() else []
        events.write_text("")
        return lines

    def fail_loads(self, number: int) -> None:
        """Have so many of the next loads fail."""
        (self.path / "failing").write_text(str(number))

    def take_failure(self) -> bool:
        """Return whether a load is to fail."""
        failing = self.path / "failing"
        number = int(failing.read_text()) if failing.exists() else 0
        failing.write_text(str(max(0, number - 1)))
        return number > 0


class FolderConnector(KVConnectorBase_V1):
    """One engine's, of an attention model with one group of KV caches."""

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        given = self._kv_transfer_config.get_from_extra_config
        self._folder = Folder(given("folder", None))
        self._block_size = vllm_config.cache_config.block_size
        # The scheduler's side.
        self._requests: dict[str, Any] = {}
        self._offers: dict[str, tuple[int, list[str], bool]] = {}
        self._is_next_async = False
        self._loads: list[Transfer] = []
        # The worker's side.
        self._caches: dict[str, torch.Tensor] = {}
        self._waiting: list[tuple[int, Transfer]] = []
        self._num_steps = 0
        self._failed_blocks: set[int] = set()
        self._received: set[str] = set()
        self._has_failed = False

    # In the scheduler.

    def on_new_request(self, request: "Request") -> None:
        self._requests[request.request_id] = request

    def request_finished(
        self,
        request: "Request",
        block_ids: list[int],  # noqa: ARG002 - vLLM's
    ) -> tuple[bool, dict[str, Any] | None]:
        self._requests.pop(request.request_id, None)
        self._offers.pop(request.request_id, None)
        return False, None

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        first = num_computed_tokens // self._block_size
        # One token is always left to be computed.
        names = self._names(request, (request.num_tokens - 1) // self._block_size)[first:]
        stored = 0
        while stored < len(names) and self._folder.block(names[stored]).exists():
            stored += 1
        # vLLM may ask for a request more than once before it has room for it.
        _, _, is_async = self._offers.pop(request.request_id, (0, [], self._is_next_async))
        if not stored:
            return 0, False
        self._offers[request.request_id] = first, names[:stored], is_async
        return stored * self._block_size, is_async

    def update_state_after_alloc(
        self,
        request: "Request",
        blocks: "KVCacheBlocks",  # noqa: ARG002 - vLLM's
        num_external_tokens: int,
    ) -> None:
        if not num_external_tokens:
            return
        first, names, is_async = self._offers.pop(request.request_id)
        self._is_next_async = not is_async
        names = names[: num_external_tokens // self._block_size]
        block_ids = self._block_ids(request.request_id)[first : first + len(names)]
        self._loads.append(Transfer(request.request_id, names, block_ids, is_async))

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> Transfers:
        meta = Transfers(self._loads)
        self._loads = []
        for request_id, num_scheduled in scheduler_output.num_scheduled_tokens.items():
            request = self._requests[request_id]
            # Only tokens that are known: others may turn out to be drafts that were wrong.
            num_tokens = min(request.num_computed_tokens + num_scheduled, request.num_tokens)
            num_full = num_tokens // self._block_size
            wanted = [
                (name, block_id)
                for name, block_id in zip(
                    self._names(request, num_full), self._block_ids(request_id), strict=False
                )
                if not self._folder.block(name).exists()
            ]
            if wanted:
                names, block_ids = map(list, zip(*wanted, strict=True))
                meta.saves.append(Transfer(request_id, names, block_ids))
        return meta

    def _block_ids(self, request_id: str) -> list[int]:
        assert self._kv_cache_manager is not None
        (block_ids,) = self._kv_cache_manager.get_block_ids(request_id)
        return list(block_ids)

    def _names(self, request: "Request", num_blocks: int) -> list[str]:
        return list(names_of(request.all_token_ids, self._block_size, request.cache_salt))[
            :num_blocks
        ]

    # In the worker.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._caches = kv_caches

    def start_load_kv(self, *_: Any, **__: Any) -> None:
        meta = self._get_connector_metadata()
        assert isinstance(meta, Transfers)
        self._num_steps += 1
        self._has_failed = False
        for load in meta.loads:
            due = self._num_steps + (_LOAD_STEPS if load.is_async else 0)
            self._waiting.append((due, load))
        for load in [load for due, load in self._waiting if due <= self._num_steps]:
            self._load(load)
        self._waiting = [(due, load) for due, load in self._waiting if due > self._num_steps]

    def _load(self, load: Transfer) -> None:
        broken = len(load.names) // 2 if self._folder.take_failure() else None
        for number, (name, block_id) in enumerate(zip(load.names, load.block_ids, strict=True)):
            if number == broken:
                self._failed_blocks.add(block_id)
                self._has_failed |= not load.is_async
            stored = torch.load(self._folder.block(name))
            for layer, cache in self._caches.items():
                cache[block_id] = 9.0 if number == broken else stored[layer]
        if load.is_async:
            self._received.add(load.request_id)
        how = "load" if broken is None else "load failed"
        self._folder.note(f"{how} between steps" if load.is_async else how)

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, *_: Any, **__: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        meta = self._get_connector_metadata()
        assert isinstance(meta, Transfers)
        if self._has_failed:
            return  # what was computed of a failed block is as wrong as it is
        for save in meta.saves:
            for name, block_id in zip(save.names, save.block_ids, strict=True):
                block = {layer: cache[block_id].clone() for layer, cache in self._caches.items()}
                partial = self._folder.block(name).with_suffix(".partial")
                torch.save(block, partial)
                partial.rename(self._folder.block(name))

    def get_finished(self, *_: Any) -> tuple[set[str] | None, set[str] | None]:
        received, self._received = self._received, set()
        return None, received

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed


def names_of(token_ids: Sequence[int], block_size: int, salt: str | None) -> Iterator[str]:
    """Name full blocks by all tokens up to their end."""
    digest = hashlib.sha256((salt or "").encode())
    for end in range(block_size, len(token_ids) + 1, block_size):
        digest.update(",".join(map(str, token_ids[end - block_size : end])).encode())
        yield digest.hexdigest()
