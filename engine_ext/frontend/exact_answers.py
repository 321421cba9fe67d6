"""Finds and stores answers for exact hits, for the weights that the engine has now."""

from typing import TYPE_CHECKING

import msgspec
from vllm.logger import init_logger
from vllm.v1.engine import FinishReason

from reprise.engine_ext.core.model_key import model_key_of
from reprise.engine_ext.frontend.exact_memory import ExactMemory
from reprise.engine_ext.frontend.tracked_request import TrackedRequest
from reprise.engine_ext.outputs.single_flight import FinishedFlight
from reprise.engine_ext.request.adapter_epochs import AdapterEpochs
from reprise.engine_ext.request.exact_hits import (
    ExactKeys,
    exact_keys,
    refusal,
    unsupported_engine,
)
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.host import steady_clock

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreRequest

    from reprise.engine_ext.core.config import RepriseConfig

logger = init_logger(__name__)


class ExactAnswers:
    """Uses an exact memory for one engine. Event loop only."""

    def __init__(
        self, vllm_config: "VllmConfig", config: "RepriseConfig", *, num_api_servers: int = 1
    ) -> None:
        serving = config.serving
        lives_s = [s for s in (serving.ttl_s, config.retrieval.ttl_s) if s is not None]
        self.memory = ExactMemory(
            max_bytes=serving.exact_memory_bytes, ttl_s=min(lives_s, default=None)
        )
        self.adapters = AdapterEpochs()
        self.weights_epoch = 0
        """Counts the changes of the model's weights."""
        self._mode = serving.exact_hits
        self._vllm_config = vllm_config
        self._model_key = model_key_of(vllm_config)
        self._num_api_servers = num_api_servers
        self._unsupported = unsupported_engine(vllm_config)
        if num_api_servers > 1 and vllm_config.weight_transfer_config is not None:
            self._unsupported = "weights may change through another API server process"
        if self._unsupported is not None and self._mode != "off":
            logger.warning("Reprise: no exact hits, because %s.", self._unsupported)

    def model_changed(self) -> None:
        """Drop all answers: weights were loaded, moved or replaced."""
        self.weights_epoch += 1
        self.memory.clear()

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
        return exact_keys(request, namespace=namespace, model_key=self._model_key_of(request))

    def find(
        self, keys: ExactKeys, request: "EngineCoreRequest", max_age_s: float | None
    ) -> Answer | None:
        """Return an answer to `request` that is at most `max_age_s` old; None: there is none.

        The first tokens of an answer do not depend on `max_tokens`: a longer one is cut to it.
        """
        assert request.sampling_params is not None
        max_tokens = request.sampling_params.max_tokens
        answer = self.memory.get(keys.complete)
        if answer is not None and not _has_room(answer, max_tokens):
            answer = _cut_to(answer, max_tokens)
        if answer is None and (known := self.memory.get(keys.cut)) is not None:
            answer = _cut_to(known, max_tokens)
        if answer is None:
            answer = self.memory.get(keys.limited)
        if answer is None or max_age_s is None:
            return answer
        return answer if steady_clock.now_s() - answer.created_s <= max_age_s else None

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
        same_weights = tracked.weights_epoch == self.weights_epoch and tracked.weight_version in (
            None,
            weight_version,
        )
        if keys is None or not same_weights:
            return False
        key = keys.complete
        if finished.ending.finish_reason is FinishReason.LENGTH:
            # At the end of the model's context an answer is shorter than `max_tokens`.
            is_cut = len(finished.token_ids) == tracked.max_tokens
            key = keys.cut if is_cut else keys.limited
        answer = Answer.create(
            prompt_token_ids=tracked.prompt_token_ids,
            response_token_ids=finished.token_ids,
            namespace=tracked.policy.namespace,
            model_key=self._model_key,
            finish_reason=str(finished.ending.finish_reason),
            stop_reason=finished.ending.stop_reason,
            exact_key=key,
        )
        self.memory.put(answer, ttl_s=tracked.policy.control.ttl_s)
        return True

    def _adapter_refusal(self, request: "EngineCoreRequest") -> str | None:
        adapter = request.lora_request
        if adapter is None:
            return None
        if self._num_api_servers > 1:
            return "adapters may change through another API server process"
        return self.adapters.refusal(adapter)

    def _model_key_of(self, request: "EngineCoreRequest") -> str:
        adapter = request.lora_request
        if adapter is None:
            return f"{self._model_key}:{self.weights_epoch}"
        with_adapter = model_key_of(self._vllm_config, lora_request=adapter)
        return f"{with_adapter}:{self.weights_epoch}:{self.adapters.key(adapter)}"


def _has_room(answer: Answer, max_tokens: int | None) -> bool:
    """Return whether an answer that ended by itself would have done so within `max_tokens`."""
    if max_tokens is None:
        return True
    num_tokens = len(answer.response_tokens) // 4
    # vLLM looks for repetition last: at the limit the limit is the reason.
    if answer.finish_reason == str(FinishReason.REPETITION):
        return num_tokens < max_tokens
    return num_tokens <= max_tokens


def _cut_to(answer: Answer, max_tokens: int | None) -> Answer | None:
    """Return the first `max_tokens` tokens of an answer, as if it had been cut there; None: it is
    not that long."""
    if max_tokens is None or len(answer.response_tokens) // 4 < max_tokens:
        return None
    return msgspec.structs.replace(
        answer,
        response_tokens=answer.response_tokens[: 4 * max_tokens],
        finish_reason=str(FinishReason.LENGTH),
        stop_reason=None,
    )
