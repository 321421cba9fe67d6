"""Exact hits beyond this process: answers in the tier, trusted by their fingerprint or verified."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
from vllm import envs
from vllm.logger import init_logger

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.fingerprint import (
    FingerprintError,
    adapter_fingerprint,
    fingerprint_of,
)
from reprise.engine_ext.core.model_key import tokenizer_key_of
from reprise.engine_ext.request.adapter_epochs import AdapterEpochs, files_of
from reprise.engine_ext.request.exact_hits import ExactKeys
from reprise.engine_ext.request.shared_keys import SharedKeys, mixed
from reprise.engine_ext.request.verifiable import is_verifiable
from reprise.retrieval.api.answer import Answer, exact_id, token_bytes
from reprise.retrieval.host import steady_clock
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.tiers.sync.circuit_breaker import CircuitBreaker
from reprise.retrieval.tiers.tier import Tier, TierError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine import EngineCoreRequest

    from reprise.engine_ext.core.config import RepriseConfig
    from reprise.retrieval.api.retriever import Retriever

logger = init_logger(__name__)
_T = TypeVar("_T")

_THREADS = 4
# Beyond that many at once, none waits for the threads.
_MAX_UNDER_WAY = 64
# A thread hangs no longer than this on a tier that does not answer; who asked has gone on long ago.
_TIER_TIMEOUT_S = 0.25
_MAX_RETRY_S = 2.0
# Answers of other servers are written behind their replies.
_LOOK_AGAIN_S = 0.05
_MAX_ADAPTER_STATES = 1000
# In the place of a fingerprint, where there is none (yet): such an answer is only ever verified.
_UNPROVEN = "unproven"


class _Lease(NamedTuple):
    """What other servers wait for, until then."""

    namespace: str
    key: bytes
    ends_s: float
    """Monotonic."""


class SharedExact:
    """Looks answers up in the tier, and has them written there. Event loop only.

    Answers that can be verified lie under keys with the served name of the model alone, whoever has
    generated them; all others under keys with the fingerprint. Until that is taken, in a thread,
    none of the latter is found or written, and none of the former trusted.

    Args:
        vllm_config: Of the engine.
        config: Our settings.
        adapters: Which adapters were loaded when.
        loaded_since_s: The time of day before the engine began to load its weights.
        retrieval: Returns the retrieval processes that answers may be written through.
        errors: Counts what goes wrong here.
        verifies: Whether the engine verifies answers of plain greedy requests.

    Raises:
        ValueError: The configured URL names no tier.
    """

    def __init__(
        self,
        vllm_config: "VllmConfig",
        config: "RepriseConfig",
        *,
        adapters: AdapterEpochs,
        loaded_since_s: float,
        retrieval: "Callable[[], Sequence[Retriever]]",
        errors: ErrorCounter,
        verifies: bool = False,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        """Look-ups by outcome: hit, unproven, miss, late, busy, failed, refused; and what was
        written."""
        self.trusts = config.serving.exact_hits_from_others == "trusted"
        """Whether an answer of this engine's fingerprint is repeated unseen."""
        self._verifies = verifies
        self._name = str(vllm_config.model_config.served_model_name)
        self._tokenizer_key = ""
        self._fingerprint: str | None = None
        self._is_withdrawn = False
        self._vllm_config, self._adapters = vllm_config, adapters
        self._loaded_since_s, self._retrieval, self._errors = loaded_since_s, retrieval, errors
        self._budget_s = config.serving.exact_budget_s
        self._lease_s = config.serving.single_flight_lease_s
        self._leases: dict[str, _Lease] = {}
        """Of requests that are generated here."""
        url, ttl_s = config.retrieval.url, config.retrieval.ttl_s
        # Nothing is written through it: it trims by no bounds.
        self._tier = open_tier(url, ttl_s=ttl_s, timeout_s=_TIER_TIMEOUT_S)
        name = url.partition(":")[0]
        self._breaker = CircuitBreaker(f"Looking exact hits up in {name}", max_retry_s=_MAX_RETRY_S)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="reprise-exact")
        self._num_under_way = 0
        self._lock = threading.Lock()
        self._adapter_states: dict[str, str | None] = {}
        self._taken = threading.Event()
        threading.Thread(
            target=self._take_fingerprint, name="reprise-fingerprint", daemon=True
        ).start()

    @property
    def fingerprint(self) -> str | None:
        """Of the engine; None: not taken yet, or there is none."""
        return None if self._is_withdrawn else self._fingerprint

    def withdraw(self) -> None:
        """Share nothing from now on: the weights are not those of the files any more."""
        if not self._is_withdrawn and self.trusts:
            logger.info("Reprise: exact hits of others are not trusted: the weights changed.")
        self._is_withdrawn = True

    def wait(self, timeout_s: float) -> bool:
        """Wait until the fingerprint is taken, or is known not to be; False if it took longer."""
        return self._taken.wait(timeout_s)

    def state_of(self, request: "EngineCoreRequest") -> str | None:
        """Return the fingerprint of what answers this request; None: it is not known (yet)."""
        if self.fingerprint is None:
            return None
        if request.lora_request is None:
            return self.fingerprint
        of_adapter = self._adapter_state(request.lora_request)
        return None if of_adapter is None else f"{self.fingerprint}:{of_adapter}"

    def keys_of(self, request: "EngineCoreRequest", keys: ExactKeys) -> SharedKeys | None:
        """Return the keys of a request's answer in the tier; None: it is not looked for there.

        Args:
            request: One that may be an exact hit.
            keys: Its keys, without the model.
        """
        state = self.state_of(request)
        if self._verifies and is_verifiable(request):
            own = mixed(keys, f"verified:{self._name}")
            return SharedKeys(own, state or _UNPROVEN, verifiable=True)
        if self.trusts and state is not None:
            return SharedKeys(mixed(keys, state), state, verifiable=False)
        return None

    def is_trusted(self, answer: Answer, state: str) -> bool:
        """Return whether an answer from the tier may be repeated without being verified."""
        return self.trusts and answer.fingerprint == state != _UNPROVEN

    async def find(
        self, request: "EngineCoreRequest", namespace: str, keys: Sequence[bytes], state: str
    ) -> list[Answer]:
        """Return the answers to a request, as many as the tier gives within the budget: trusted
        ones, and of a verifiable request others too."""
        found = await self._ask(lambda tier: tier.find_exact(namespace, keys))
        if found is None:
            return []
        prompt_tokens = token_bytes(request.prompt_token_ids or [])
        good = [a for a in found if _is_answer_to(a, prompt_tokens, namespace, keys)]
        if not (self._verifies and is_verifiable(request)):
            good = [a for a in good if self.is_trusted(a, state)]
        self.outcomes["refused"] += len(found) - len(good)
        is_hit = any(self.is_trusted(a, state) for a in good)
        self.outcomes["hit" if is_hit else "unproven" if good else "miss"] += 1
        return good

    async def find_later(
        self,
        request: "EngineCoreRequest",
        namespace: str,
        keys: SharedKeys,
        *,
        is_led_here: Callable[[], bool],
    ) -> list[Answer]:
        """Wait for the answer that another server is generating, see `find`; none: this one is to
        generate it, and no other will meanwhile."""
        if (lease_s := self._lease_s) is None:
            return []
        limited = keys.keys.limited
        deadline_s = time.monotonic() + lease_s
        while time.monotonic() < deadline_s and not is_led_here():
            lease = _Lease(namespace, limited, time.monotonic() + lease_s)
            is_ours = await self._ask(
                lambda tier: tier.lease(namespace, limited, ttl_s=lease_s),
                on_unused=partial(self._give_back_if, lease),
            )
            if is_ours:
                self._leases[request.request_id] = lease
            if is_ours is not False:
                return []
            self.outcomes["waited"] += 1
            await asyncio.sleep(_LOOK_AGAIN_S)
            if found := await self.find(request, namespace, keys.keys, keys.state):
                return found
        return []

    def keep_lease(self, request_id: str) -> None:
        """Let a lease run out by itself: the answer is on its way."""
        self._leases.pop(request_id, None)

    def ended(self, request_id: str) -> None:
        """Give back the lease of a request, if it has one, whose answer nobody is to wait for."""
        if (lease := self._leases.pop(request_id, None)) is not None:
            self._give_back(lease)

    def _give_back(self, lease: _Lease) -> None:
        """Have a lease ended, in a thread; returns at once. From any thread."""
        if self._tier is not None and time.monotonic() < lease.ends_s:
            # Not by way of the breaker, which late answers open: the tier has granted it. After
            # `close` there are no threads, and it runs out by itself.
            with suppress(RuntimeError):
                self._threads.submit(self._tier.end_lease, lease.namespace, lease.key)

    def _give_back_if(self, lease: _Lease, is_ours: bool) -> None:
        """Have a lease ended that was granted to nobody who uses it, see `_ask`."""
        if is_ours:
            self._give_back(lease)

    async def _ask(
        self, call: Callable[[Tier], _T], *, on_unused: Callable[[_T], None] = lambda _: None
    ) -> _T | None:
        """Ask the tier, in a thread; None: not within the budget.

        Args:
            call: What to ask; may raise `TierError`.
            on_unused: Called with what came later, or for nobody since who asked has left; in any
                thread.
        """
        if (tier := self._tier) is None:
            return None
        with self._lock:
            if self._num_under_way >= _MAX_UNDER_WAY:
                self.outcomes["busy"] += 1
                return None
            self._num_under_way += 1
        began_s = time.monotonic()

        def ask() -> _T:
            result = call(tier)
            if (took_s := time.monotonic() - began_s) > self._budget_s:
                on_unused(result)
                raise TierError(f"an answer came after {took_s * 1e3:.0f} ms")
            return result

        future: Future[_T] = self._threads.submit(self._breaker.call, ask)
        future.add_done_callback(self._release)
        is_used = False
        try:
            async with asyncio.timeout(self._budget_s):
                result = await asyncio.wrap_future(future)
            is_used = True
            return result
        except TimeoutError:
            self.outcomes["late"] += 1
            # Now, not when the tier gives up: until then every request would wait.
            self._breaker.failed(f"nothing came within {self._budget_s * 1e3:.0f} ms")
        except TierError:
            self.outcomes["failed"] += 1
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self.outcomes["failed"] += 1  # the look-up was dropped, by `close`, not who asked
        finally:
            if not is_used:
                future.add_done_callback(partial(_pass_on, on_unused))
        return None

    def store(
        self, answer: Answer, *, key: bytes, keys: SharedKeys, expires_s: float | None
    ) -> None:
        """Have an answer written for others, under one of its keys; returns at once."""
        record = msgspec.structs.replace(
            answer,
            exact_key=key,
            fingerprint=keys.state,
            expires_s=expires_s,
            response_text="",
            tokenizer_key=self._tokenizer_key,
            verifiable=keys.verifiable,
        )
        for retriever in self._retrieval()[:1]:
            retriever.store(record)
            self.outcomes["written"] += 1

    def used(self, namespace: str, key: bytes, num_tokens: int) -> None:
        """Report that an answer was repeated: by that it stays while others have to leave."""
        for retriever in self._retrieval()[:1]:
            retriever.record_usage(namespace, {exact_id(key): num_tokens})

    def stats(self) -> dict[str, Any]:
        """Return plain figures since this process started."""
        return {
            **self.outcomes,
            "fingerprint": self.fingerprint,
            "breaker": self._breaker.state,
            "unreadable": 0 if self._tier is None else self._tier.num_damaged,
        }

    def close(self) -> None:
        """Release connections and threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._tier is not None:
            self._tier.close()

    def _release(self, _: "Future[Any]") -> None:
        with self._lock:
            self._num_under_way -= 1

    def _take_fingerprint(self) -> None:
        try:
            self._tokenizer_key = tokenizer_key_of(self._vllm_config)
            fingerprint = fingerprint_of(
                self._vllm_config,
                loaded_since_s=self._loaded_since_s,
                cache_folder=Path(envs.VLLM_CACHE_ROOT) / "reprise",
            )
            self._connect()
            self._fingerprint = fingerprint
        except FingerprintError as error:
            if self.trusts:
                logger.warning("Reprise: no exact hit of others is trusted, because %s.", error)
        except Exception as error:
            self._errors.record("fingerprint", error)
        finally:
            self._taken.set()

    def _connect(self) -> None:
        """Connect now, which takes longer than a look-up may."""
        try:
            if self._tier is not None:
                self._tier.find_exact("", [b"\0" * 16])
        except TierError:
            return  # the look-ups say so

    def _adapter_state(self, adapter: "LoRARequest") -> str | None:
        """Return the fingerprint of an adapter; its first request has it taken, in a thread."""
        loaded_since_s = self._adapters.loaded_since_s(adapter.lora_int_id, self._loaded_since_s)
        # Where its files have changed since it was loaded, what vLLM goes on with is not known: it
        # drops adapters that are not used, and reads them again.
        files = files_of(adapter.lora_path)
        name = f"{self._adapters.key(adapter)}:{adapter.lora_path}:{files}:{loaded_since_s}"
        if name not in self._adapter_states:
            if len(self._adapter_states) >= _MAX_ADAPTER_STATES:
                self._adapter_states.clear()
            self._adapter_states[name] = None
            self._threads.submit(self._take_adapter, name, Path(adapter.lora_path), loaded_since_s)
        return self._adapter_states[name]

    def _take_adapter(self, name: str, folder: Path, loaded_since_s: float) -> None:
        try:
            self._adapter_states[name] = adapter_fingerprint(folder, loaded_since_s=loaded_since_s)
        except FingerprintError as error:
            logger.warning("Reprise: an adapter's exact hits stay in this process: %s.", error)
        except Exception as error:
            self._errors.record("fingerprint", error)


def _pass_on(take: Callable[[_T], None], future: "Future[_T]") -> None:
    """Call `take` with what came of a future, if anything did."""
    if not future.cancelled() and future.exception() is None:
        take(future.result())


def _is_answer_to(
    answer: Answer,
    prompt_tokens: bytes,
    namespace: str,
    keys: Sequence[bytes],
) -> bool:
    """Return whether a record is what its key promises: what lies in a tier may be anything."""
    return (
        answer.namespace == namespace
        and answer.exact_key in keys
        and answer.prompt_tokens == prompt_tokens
        and (answer.expires_s is None or steady_clock.now_s() < answer.expires_s)
    )
