"""Requests with `min_p` or `logit_bias` are generated without drafts, where vLLM refuses them.

vLLM 0.32 answers them with 400 as soon as there is a speculative config, because its rejection
sampler applies the two to the bonus token only, and it then does not even build the processors. A
row without drafts has no other token than that one: so the processors are built, and such a request
never gets drafts, whatever the rest of its batch gets.

Custom logits processors are refused at the start by vLLM with any speculative config, and that
stays: nobody can tell which requests they act on.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.version import __version__ as vllm_version

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig

logger = init_logger(__name__)

_KNOWN_VLLM = "0.32."
_BUILD_PARAMETERS = (
    "vllm_config",
    "device",
    "is_pin_memory",
    "is_pooling_model",
    "custom_logitsprocs",
)
_BUILTIN = ("MinTokensLogitsProcessor", "LogitBiasLogitsProcessor", "MinPLogitsProcessor")


def must_not_be_drafted(params: SamplingParams) -> bool:
    """Whether a request asks for what drafted tokens would not be held to."""
    return params.min_p > 0.0 or bool(params.logit_bias)


def allow_requests() -> None:
    """Let engines with our proposer take such requests, in the process that checks them.

    Idempotent.

    Raises:
        RuntimeError: this vLLM is not the one whose sampling was read; it goes on refusing them.
    """
    from reprise.engine_ext.core.identity import PROPOSER_PATH

    original = SamplingParams._validate_spec_decode
    if getattr(original, "_reprise_allows", False):
        return
    _check_vllm()

    @wraps(original)
    def validate(self: SamplingParams, speculative_config: "SpeculativeConfig | None") -> None:
        if speculative_config is None or speculative_config.model != PROPOSER_PATH:
            original(self, speculative_config)

    validate._reprise_allows = True  # type: ignore[attr-defined]
    SamplingParams._validate_spec_decode = validate


def install_in_worker() -> None:
    """Have the model runner that is being built apply `min_p` and `logit_bias`. Idempotent.

    Where this vLLM is not as expected nothing is changed, and no such request arrives: the same
    check keeps the front end from letting them in.
    """
    from vllm.v1.worker import gpu_model_runner

    original: Callable[..., Any] = gpu_model_runner.build_logitsprocs
    if getattr(original, "_reprise_applies", False):
        return
    try:
        _check_vllm()
    except RuntimeError as error:
        logger.warning("Reprise: %s; requests with min_p or logit_bias are refused.", error)
        return
    gpu_model_runner.build_logitsprocs = _with_all_builtin(original)


def _with_all_builtin(original: Callable[..., Any]) -> Callable[..., Any]:
    from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, LogitsProcessors

    from reprise.engine_ext.core.identity import uses_our_proposer

    @wraps(original)
    def build_logitsprocs(
        vllm_config: Any,
        device: Any,
        is_pin_memory: bool,
        is_pooling_model: bool,
        custom_logitsprocs: Any = (),
    ) -> Any:
        if is_pooling_model or custom_logitsprocs or not uses_our_proposer(vllm_config):
            return original(
                vllm_config, device, is_pin_memory, is_pooling_model, custom_logitsprocs
            )
        return LogitsProcessors(
            processor(vllm_config, device, is_pin_memory) for processor in BUILTIN_LOGITS_PROCESSORS
        )

    build_logitsprocs._reprise_applies = True  # type: ignore[attr-defined]
    return build_logitsprocs


def _check_vllm() -> None:
    """Compare this vLLM with what the two halves rely on, the same in every process.

    Raises:
        RuntimeError: it is another.
    """
    from vllm.v1.sample import logits_processor

    found = inspect.unwrap(logits_processor.build_logitsprocs)
    parameters = tuple(inspect.signature(found).parameters)
    builtin = tuple(kind.__name__ for kind in logits_processor.BUILTIN_LOGITS_PROCESSORS)
    if (
        not vllm_version.startswith(_KNOWN_VLLM)
        or parameters != _BUILD_PARAMETERS
        or builtin != _BUILTIN
    ):
        raise RuntimeError(
            f"expected vLLM {_KNOWN_VLLM}* with build_logitsprocs{_BUILD_PARAMETERS} and "
            f"{', '.join(_BUILTIN)}; came vLLM {vllm_version} with build_logitsprocs{parameters} "
            f"and {', '.join(builtin)}"
        )
