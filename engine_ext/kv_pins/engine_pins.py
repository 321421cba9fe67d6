"""Pins prefixes in the engine core: learns from each request, and answers for what is pinned.

The hooks of `Feature.KV_PINS`. Only an engine whose settings switch pins on gets any that run in
its steps; the scheduler's class, asynchronous or not, and the model runner make no difference.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from vllm.logger import init_logger

from reprise.engine_ext.compat.engine_state import mark_of, set_mark
from reprise.engine_ext.compat.guarded import Original, step_errors
from reprise.engine_ext.compat.patches import Feature
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import engine_config
from reprise.engine_ext.core.identity import uses_our_proposer
from reprise.engine_ext.core.request_hints import read_hints
from reprise.engine_ext.kv_pins.eviction_order import EvictionOrder
from reprise.engine_ext.kv_pins.pin_table import Origin, Pin, PinTable
from reprise.engine_ext.kv_pins.shared_prefixes import SharedPrefixes
from reprise.retrieval.api.invalidation import Invalidation

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import NewRequestData

    from reprise.engine_ext.core.kv_pins_config import KvPinsConfig

logger = init_logger(__name__)

_PINS = "kv_pins"
_MAX_HEAD_TOKENS = 32
_ORIGINS = {"system": Origin.SYSTEM, "request": Origin.REQUEST, "operator": Origin.OPERATOR}


class EnginePins:
    """Pins prefixes for one engine core's scheduler.

    Args:
        scheduler: vLLM's, with a prefix cache.
        config: the settings.
        namespace: the one that the operator has put all requests in; None: each has its own.
    """

    def __init__(
        self, scheduler: Any, config: "KvPinsConfig", *, namespace: str | None = None
    ) -> None:
        manager = scheduler.kv_cache_manager
        pool = manager.block_pool
        self._scheduler = scheduler
        self._namespace = namespace
        self._hash_block_tokens = pool.hash_block_size
        groups = manager.coordinator.single_type_managers
        self._blocks_a_hash = sum(pool.hash_block_size / each.block_size for each in groups)
        self._table = PinTable(int(config.max_share * pool.num_gpu_blocks / self._blocks_a_hash))
        self._shared = SharedPrefixes(config.shared_by)
        self._order = EvictionOrder(pool, len(groups), self._table)
        self._counts: Counter[str] = Counter()
        self._not_noted: set[str] = set()
        """Requests that waited when what their namespace had pinned was erased."""
        for patched in (scheduler, pool):
            registry.apply_to(patched, Feature.KV_PINS, self)

    def get_new_blocks(self, original: Original, num_blocks: int) -> Any:
        """Run vLLM's, with pinned blocks out of its way."""
        self._order.spare(num_blocks)
        return original()

    def reset_prefix_cache(self, original: Original) -> Any:
        """Run vLLM's: pins stay known, and their blocks are pinned again once computed."""
        is_reset = original()
        if is_reset:
            self._order.forget_spared()
        return is_reset

    def schedule(self, original: Original, *_: Any, **__: Any) -> Any:
        """Run vLLM's, and learn from the requests that begin."""
        output = original()
        for new in output.scheduled_new_reqs:
            self._note(new)
        return output

    def _note(self, new: "NewRequestData") -> None:
        """Count what a request has found of pinned prefixes, and pin what it begins with."""
        request = self._scheduler.requests[new.req_id]
        hints = read_hints(request.sampling_params)
        namespace = self._namespace_of(request)
        if namespace is None or not hints.pins or request.sampling_params is None:
            return  # nobody knows whose it is, or it is to leave no trace
        if new.req_id in self._not_noted:
            self._not_noted.remove(new.req_id)
            return
        hashes = request.block_hashes[: request.num_prompt_tokens // self._hash_block_tokens]
        # A connector's tokens among them are the last ones, and count like those found here.
        self._count_hits(namespace, hashes, new.num_computed_tokens // self._hash_block_tokens)
        head = (request.prompt_token_ids or ())[:_MAX_HEAD_TOKENS]
        counted = hashes[: self._table.max_blocks]
        if num_shared := self._shared.note(namespace, counted):
            self._table.want(namespace, hashes[:num_shared], Origin.SHARED, head_token_ids=head)
        if num_asked := min(hints.pin_tokens // self._hash_block_tokens, len(hashes)):
            origin = _ORIGINS.get(hints.pin_origin, Origin.REQUEST)
            self._table.want(namespace, hashes[:num_asked], origin, head_token_ids=head)
        self._table.note_request(self._table.path(namespace, hashes), time.monotonic())

    def _namespace_of(self, request: Any) -> str | None:
        if self._namespace is not None:
            return self._namespace
        return read_hints(request.sampling_params).namespace

    def _count_hits(self, namespace: str, hashes: list[bytes], num_found: int) -> None:
        """Count tokens that were in the prefix cache, of those that are pinned."""
        longest = 0
        for pin in self._table.path(namespace, hashes):
            if pin.is_held:
                longest = min(len(pin.block_hashes), num_found)
                pin.hit_tokens += longest * self._hash_block_tokens
        if longest:
            self._counts["hits"] += 1
            self._counts["hit_tokens"] += longest * self._hash_block_tokens
        num_spared = self._order.take_spared(hashes[:num_found])
        self._counts["saved_tokens"] += num_spared * self._hash_block_tokens

    def stats(self) -> dict[str, Any]:
        """Return figures, plain values only; see docs/metrics.md."""
        return {
            "pins": len(self._table.pins(held=True)),
            "waiting_pins": len(self._table) - len(self._table.pins(held=True)),
            "pinned_blocks": self._order.num_resident(),
            "block_tokens": self._hash_block_tokens,
            "max_blocks": int(self._table.max_blocks * self._blocks_a_hash),
            "released_blocks": self._order.num_released,
            "hits": self._counts["hits"],
            "hit_tokens": self._counts["hit_tokens"],
            "saved_tokens": self._counts["saved_tokens"],
            "errors": step_errors.counts(),
        }

    def listed(self) -> list[dict[str, Any]]:
        """List all pins, those that are worth most first."""
        now_s = time.monotonic()
        pins = sorted(self._table.pins(), key=lambda pin: pin.rank(now_s), reverse=True)
        return [self._describe(pin, now_s) for pin in pins]

    def _describe(self, pin: Pin, now_s: float) -> dict[str, Any]:
        return {
            "pin_id": pin.pin_id,
            "namespace": pin.namespace,
            "origin": pin.origin.name.lower(),
            "state": "pinned" if pin.is_held else "waiting",
            "tokens": len(pin.block_hashes) * self._hash_block_tokens,
            "resident_blocks": len(self._order.resident(pin.block_hashes)),
            "requests": pin.num_requests,
            "requests_an_hour": round(pin.requests_an_hour(now_s), 3),
            "hit_tokens": pin.hit_tokens,
            "head_token_ids": list(pin.head_token_ids),
        }

    def unpin(self, pin_id: str | None) -> list[dict[str, Any]]:
        """Forget a pin, or all with what was learned towards others; return those forgotten."""
        if pin_id is None:
            self._shared.forget()
        now_s = time.monotonic()
        gone = self._table.remove(lambda pin: pin_id in (None, pin.pin_id))
        return [self._describe(pin, now_s) for pin in gone]

    def forget(self, covers: Callable[[str], bool]) -> None:
        """Forget pins, and what was learned towards others, of the namespaces for which `covers`
        holds; requests of them that wait pin nothing."""
        self._shared.forget(covers)
        self._table.remove(lambda pin: covers(pin.namespace))
        requests = self._scheduler.requests
        self._not_noted &= requests.keys()
        for request_id, request in requests.items():
            namespace = self._namespace_of(request)
            if namespace is not None and covers(namespace):
                self._not_noted.add(request_id)

    def weights_changed(self) -> None:
        """Take what is pinned out of the prefix cache: it may be of other weights by now."""
        self._order.evict_pinned()


def pins_of(scheduler: Any) -> EnginePins | None:
    """Return the pins of an engine; None: its settings switch them off."""
    pins: EnginePins | None = mark_of(scheduler, _PINS)
    return pins


def begin_scheduler(
    original: Callable[..., None], scheduler: Any, *args: Any, **kwargs: Any
) -> None:
    """Run vLLM's, and pin prefixes if the settings want it."""
    original(scheduler, *args, **kwargs)
    try:
        _begin(scheduler)
    except Exception as error:
        step_errors.record("Scheduler.__init__", error)


def _begin(scheduler: Any) -> None:
    if not uses_our_proposer(scheduler.vllm_config):
        return
    config = engine_config(scheduler.vllm_config)
    if not config.kv_pins.enabled:
        return
    if not scheduler.kv_cache_manager.enable_caching:
        logger.warning("Reprise: nothing is pinned: this engine has no prefix cache.")
        return
    pins = EnginePins(scheduler, config.kv_pins, namespace=config.namespace)
    set_mark(scheduler, _PINS, pins)
    logger.info("Reprise: prefixes are pinned, in up to %d blocks.", pins.stats()["max_blocks"])


def collective_rpc(
    original: Callable[..., Any], core: Any, method: Any, *args: Any, **kwargs: Any
) -> Any:
    """Run vLLM's. Whatever may change the weights unpins first: a call that is not ours."""
    pins = pins_of(getattr(core, "scheduler", None))  # there is none yet while it starts
    if pins is not None and not (isinstance(method, str) and method.startswith("reprise_")):
        pins.weights_changed()
    return original(core, method, *args, **kwargs)


def reprise_kv_pins(core: Any, command: str, given: Any = None) -> Any:
    """Answer a front end: `stats`, `list`, `unpin` of one by its id or of all, or `forget` what an
    encoded invalidation covers; None: pins are off."""
    pins = pins_of(core.scheduler)
    if pins is None:
        return None
    if command == "unpin":
        return pins.unpin(given)
    if command == "forget":
        return pins.forget(msgspec.json.decode(given, type=Invalidation).covers)
    return pins.listed() if command == "list" else pins.stats()
