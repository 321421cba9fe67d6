"""Finds and stores answers for exact hits, for the weights that the engine has now."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from vllm import envs
from vllm.logger import init_logger
from vllm.v1.engine import FinishReason

from reprise.engine_ext.core.model_key import model_key_of
from reprise.engine_ext.frontend.exact_memory import ExactMemory
from reprise.engine_ext.frontend.shared_exact import SharedExact
from reprise.engine_ext.frontend.tracked_request import TrackedRequest
from reprise.engine_ext.outputs.flight import FinishedFlight
from reprise.engine_ext.request.adapter_epochs import AdapterEpochs
from reprise.engine_ext.request.exact_hits import (
    ExactKeys,
    exact_keys,
    refusal,
    unsupported_engine,
)
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.engine_ext.request.shared_keys import SharedKeys, mixed
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.host import steady_clock

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine import EngineCoreRequest

    from reprise.engine_ext.core.config import RepriseConfig

logger = init_logger(__name__)


class ExactAnswers:
    """Uses an exact memory, and the tier behind it, for one engine. Event loop only."""

    def __init__(
        self,
        vllm_config: "VllmConfig",
        config: "RepriseConfig",
        *,
        num_api_servers: int = 1,
        has_fixed_adapters: bool = False,
    ) -> None:
        serving = config.serving
        lives_s = [s for s in (serving.ttl_s, config.retrieval.ttl_s) if s is not None]
        self._ttl_s = min(lives_s, default=None)
        self.memory = ExactMemory(max_bytes=serving.exact_memory_bytes, ttl_s=self._ttl_s)
        self.shared: SharedExact | None = None
        """None: nothing is kept beyond this process."""
        self.is_forgotten: Callable[[Answer], bool] = lambda _: False
        """Whether an answer that comes from the tier was to be forgotten."""
        self.adapters = AdapterEpochs()
        self.weights_epoch = 0
        """Counts the changes of the model's weights."""
        self._last: tuple[EngineCoreRequest, str, ExactKeys] | None = None
        self._mode = serving.exact_hits
        self._vllm_config = vllm_config
        self._model_key = model_key_of(vllm_config)
        self._others_may_change_adapters = num_api_servers > 1 and not has_fixed_adapters
        self._unsupported = unsupported_engine(vllm_config)
        others_may_change_weights = (
            vllm_config.weight_transfer_config is not None or envs.VLLM_SERVER_DEV_MODE
        )
        if num_api_servers > 1 and others_may_change_weights:
            self._unsupported = "weights may change through another API server process"
        if self._unsupported is not None and self._mode != "off":
            logger.warning("Reprise: no exact hits, because %s.", self._unsupported)

    def model_changed(self) -> None:
        """Drop all answers: weights were loaded, moved or replaced."""
        self.weights_epoch += 1
        self.memory.clear()
        if self.shared is not None:
            self.shared.withdraw()

    @property
    def may_share(self) -> bool:
        """Whether the answers of this engine may be exact hits of others at all."""
        return self._mode != "off" and self._unsupported is None

    def weights_of(self, adapter: "LoRARequest | None") -> str:
        """Return a name for the state of the model's weights, and of those of an adapter."""
        epoch = str(self.weights_epoch)
        return epoch if adapter is None else f"{epoch}:{self.adapters.key(adapter)}"

    def refusal(self, request: "EngineCoreRequest") -> str | None:
        """Return why this request must be generated and its answer not stored; None: it need not.

        See `exact_hits.refusal`.
        """
        return self._unsupported or refusal(request, self._mode) or self._adapter_refusal(request)

    def keys(self, request: "EngineCoreRequest", namespace: str) -> ExactKeys:
        """Return the keys of a request that is not refused, with the weights as they are.

        Raises:
            ValueError: a setting has no encoding; such a request cannot be replayed.
        """
        return mixed(self._base_keys(request, namespace), self._model_key_of(request))

    def shared_keys(self, request: "EngineCoreRequest", namespace: str) -> SharedKeys | None:
        """Return the keys of a request's answer in the tier; None: it is not looked for there.

        Raises:
            ValueError: As `keys`.
        """
        if self.shared is None:
            return None
        return self.shared.keys_of(request, self._base_keys(request, namespace))

    def missing(
        self, request: "EngineCoreRequest", policy: RequestPolicy
    ) -> tuple[ExactKeys, SharedKeys] | None:
        """Return the keys, here and in the tier, of an answer that may be there only; None: it is
        not looked for there."""
        if self.shared is None or self.refusal(request) is not None:
            return None
        try:
            shared = self.shared_keys(request, policy.namespace)
            keys = self.keys(request, policy.namespace)
        except ValueError:
            return None
        if shared is None or self.find(keys, request, policy.control.max_age_s) is not None:
            return None
        return keys, shared

    async def fetch(
        self,
        request: "EngineCoreRequest",
        policy: RequestPolicy,
        *,
        is_led: Callable[[bytes], bool] = lambda _: True,
    ) -> Answer | None:
        """Bring the answer to a request from the tier into memory, if it is there in time.

        Args:
            request: About to be answered.
            policy: Its own.
            is_led: Whether a request of this key is generated here already, and can be followed.

        Returns:
            The longest one that is not trusted, for the engine to verify; None: there is none.
        """
        missing = self.missing(request, policy)
        if self.shared is None or missing is None:
            return None
        keys, shared = missing
        model_key = self._model_key_of(request)
        found = await self.shared.find(request, policy.namespace, shared.keys, shared.state)
        if not found and policy.control.store:
            limited = keys.limited
            found = await self.shared.find_later(
                request, policy.namespace, shared, is_led_here=lambda: is_led(limited)
            )
        if self._model_key_of(request) != model_key:
            return None  # the weights have changed meanwhile
        here = dict(zip(shared.keys, keys, strict=True))
        to_verify = []
        for answer in found:
            if answer.exact_key is None or self.is_forgotten(answer):
                continue
            if self.shared.is_trusted(answer, shared.state):
                key = here[answer.exact_key]
                self._take_in(msgspec.structs.replace(answer, exact_key=key))
            elif _is_young(answer, policy.control.max_age_s) and _is_young(answer, self._ttl_s):
                to_verify.append(answer)
        return max(to_verify, key=lambda answer: len(answer.response_tokens), default=None)

    def used(self, tracked: TrackedRequest, answer: Answer) -> None:
        """Report that a request was answered with this."""
        if self.shared is not None and tracked.shared is not None:
            key = dict(zip(tracked.keys or (), tracked.shared.keys, strict=False)).get(
                answer.exact_key or b""
            )
            if key is not None:
                self.shared.used(answer.namespace, key, len(answer.response_token_ids))

    def find(
        self, keys: ExactKeys, request: "EngineCoreRequest", max_age_s: float | None
    ) -> Answer | None:
        """Return the latest answer to `request` that is at most `max_age_s` old; None: there is
        none.

        The first tokens of an answer do not depend on `max_tokens`: a longer one is cut to it.
        """
        assert request.sampling_params is not None
        max_tokens = request.sampling_params.max_tokens
        whole = self.memory.get(keys.complete)
        if whole is not None and not _has_room(whole, max_tokens):
            whole = _cut_to(whole, max_tokens)
        cut = self.memory.get(keys.cut)
        if cut is not None:
            cut = _cut_to(cut, max_tokens)
        # Where one sample is repeated, they may be different ones, of which the client may have
        # asked to have the last one generated anew.
        known = [each for each in (whole, cut, self.memory.get(keys.limited)) if each is not None]
        latest = max(known, key=lambda each: each.created_s, default=None)
        return latest if latest is not None and _is_young(latest, max_age_s) else None

    def store(
        self, tracked: TrackedRequest, finished: FinishedFlight, *, weight_version: str | None
    ) -> bool:
        """Store the answer of a request; return False if it cannot be an exact hit.

        Args:
            tracked: The request, with the state of the weights as it came.
            finished: Its answer.
            weight_version: vLLM's label of the weights now; None: not known.
        """
        keys = tracked.keys
        if keys is None or tracked.weight_version not in (None, weight_version):
            return False
        if tracked.weights != self.weights_of(tracked.lora_request):
            return False
        answer = Answer.create(
            prompt_token_ids=tracked.prompt_token_ids,
            response_token_ids=finished.token_ids,
            namespace=tracked.policy.namespace,
            model_key=self._model_key,
            finish_reason=str(finished.ending.finish_reason),
            stop_reason=finished.ending.stop_reason,
            exact_key=_key_of(keys, finished, tracked.max_tokens),
        )
        self.memory.put(answer, ttl_s=tracked.policy.control.ttl_s)
        self._share(answer, tracked, finished)
        return True

    def _share(self, answer: Answer, tracked: TrackedRequest, finished: FinishedFlight) -> None:
        """Have an answer that was just stored written to the tier."""
        if self.shared is None or tracked.shared is None:
            return
        if not self.shared.trusts and tracked.num_verified == len(finished.token_ids):
            return  # it came from there, and who generated it is of no use
        lives_s = [s for s in (tracked.policy.control.ttl_s, self._ttl_s) if s is not None]
        self.shared.keep_lease(tracked.request_id)
        self.shared.store(
            answer,
            key=_key_of(tracked.shared.keys, finished, tracked.max_tokens),
            keys=tracked.shared,
            expires_s=answer.created_s + min(lives_s) if lives_s else None,
        )

    def _take_in(self, answer: Answer) -> None:
        """Hold an answer from the tier in memory for what is left of its time."""
        now_s = steady_clock.now_s()
        lives_s = [] if answer.expires_s is None else [answer.expires_s - now_s]
        lives_s += [] if self._ttl_s is None else [answer.created_s + self._ttl_s - now_s]
        left_s = min(lives_s, default=None)
        held = None if answer.exact_key is None else self.memory.get(answer.exact_key)
        if held is not None and held.created_s >= answer.created_s:
            return
        if left_s is None or left_s > 0:
            bare = msgspec.structs.replace(answer, fingerprint="", expires_s=None, prompt_text="")
            self.memory.put(bare, ttl_s=left_s)

    def _base_keys(self, request: "EngineCoreRequest", namespace: str) -> ExactKeys:
        """Return keys in which the model is still missing; those of the last request are kept."""
        if self._last is None or self._last[0] is not request or self._last[1] != namespace:
            keys = exact_keys(request, namespace=namespace, model_key="")
            self._last = (request, namespace, keys)
        return self._last[2]

    def _adapter_refusal(self, request: "EngineCoreRequest") -> str | None:
        adapter = request.lora_request
        if adapter is None:
            return None
        if self._others_may_change_adapters:
            return "adapters may change through another API server process"
        return self.adapters.refusal(adapter)

    def _model_key_of(self, request: "EngineCoreRequest") -> str:
        adapter, model_key = request.lora_request, self._model_key
        if adapter is not None:
            model_key = model_key_of(self._vllm_config, lora_request=adapter)
        return f"{model_key}:{self.weights_of(adapter)}"


def _key_of(keys: ExactKeys, finished: FinishedFlight, max_tokens: int | None) -> bytes:
    """Return which of a request's keys its answer is stored under."""
    if finished.ending.finish_reason is not FinishReason.LENGTH:
        return keys.complete
    # At the end of the model's context an answer is shorter than `max_tokens`.
    return keys.cut if len(finished.token_ids) == max_tokens else keys.limited


def _is_young(answer: Answer, max_age_s: float | None) -> bool:
    return max_age_s is None or steady_clock.now_s() - answer.created_s <= max_age_s


def _has_room(answer: Answer, max_tokens: int | None) -> bool:
    """Return whether an answer that ended by itself would have done so within `max_tokens`."""
    if max_tokens is None:
        return True
    num_tokens = len(answer.response_token_ids)
    # vLLM looks for repetition last: at the limit the limit is the reason.
    if answer.finish_reason == str(FinishReason.REPETITION):
        return num_tokens < max_tokens
    return num_tokens <= max_tokens


def _cut_to(answer: Answer, max_tokens: int | None) -> Answer | None:
    """Return the first `max_tokens` tokens of an answer, as if it had been cut there; None: it is
    not that long."""
    if max_tokens is None or len(answer.response_token_ids) < max_tokens:
        return None
    return msgspec.structs.replace(
        answer,
        response_tokens=answer.response_tokens[: 4 * max_tokens],
        finish_reason=str(FinishReason.LENGTH),
        stop_reason=None,
    )
