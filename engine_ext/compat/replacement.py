"""Where `EnhancedAsyncLLM` takes the place of vLLM's `AsyncLLM`."""

import inspect
import sys
from collections.abc import Mapping
from functools import wraps
from typing import Any

from vllm.logger import init_logger
from vllm.v1.engine.async_llm import AsyncLLM

from reprise.engine_ext.compat.vllm_expectations import unexpected_in_vllm
from reprise.engine_ext.core.identity import PROPOSER_PATH, unsupported_start, uses_our_proposer

logger = init_logger(__name__)


def install() -> bool:
    """Have `AsyncLLM.from_vllm_config` and `from_engine_args` build an `EnhancedAsyncLLM` where
    the speculative config names our proposer. Idempotent.

    The class itself stays in place: whoever imported it by name gets the same, and `isinstance`
    holds. An engine with any other speculative config is built as ever.

    Returns:
        False, with one line in the log, where this vLLM is not as expected.

    Raises:
        SystemExit: the command line names our proposer and asks for what `unsupported_start`
            tells.
    """
    if getattr(AsyncLLM, "_reprise_installed", False):
        return True
    # The speculative config may also stand in a file; then the workers refuse.
    refused = unsupported_start()
    if refused is not None and any(PROPOSER_PATH in word for word in sys.argv):
        raise SystemExit(refused)
    problem = unexpected_in_vllm()
    if problem is not None:
        logger.warning(
            "Reprise: %s; there will be no exact hits, control per request or metrics, drafts "
            "only, and requests without cache_salt share no cached answers unless "
            "REPRISE_NAMESPACE declares a single tenant.",
            problem,
        )
        return False
    for name in ("from_vllm_config", "from_engine_args"):
        _gate(name)
    AsyncLLM._reprise_installed = True
    return True


def _gate(name: str) -> None:
    original = getattr(AsyncLLM, name).__func__
    signature = inspect.signature(original)

    @wraps(original)
    def build(cls: type[AsyncLLM], *args: Any, **kwargs: Any) -> AsyncLLM:
        config = list(signature.bind(cls, *args, **kwargs).arguments.values())[1]
        if cls is AsyncLLM and _wants_enhancement(config):
            # Only now: who does not want it is spared what it imports.
            from reprise.engine_ext.async_llm import EnhancedAsyncLLM

            cls = EnhancedAsyncLLM
        engine: AsyncLLM = original(cls, *args, **kwargs)
        return engine

    setattr(AsyncLLM, name, classmethod(build))


def _wants_enhancement(config: Any) -> bool:
    """Whether engine args or a vLLM config name our proposer."""
    speculative = getattr(config, "speculative_config", None)
    if isinstance(speculative, Mapping):
        return speculative.get("model") == PROPOSER_PATH
    return speculative is not None and uses_our_proposer(config)
