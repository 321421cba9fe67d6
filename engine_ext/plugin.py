"""The general plugin: what vLLM calls in every process before it builds anything.

It changes nothing for an engine whose speculative config does not name our proposer: what it puts
in place calls vLLM's own for those.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from vllm.logger import init_logger

logger = init_logger(__name__)


def register() -> None:
    """Entry point of the group `vllm.general_plugins`; may be called more than once.

    Never raises an `Exception`: what a plugin raises keeps vLLM from starting at all.

    Raises:
        SystemExit: the command line names our proposer and asks for what `check_start` says will
            not work.
    """
    try:
        _register()
    except Exception as error:
        logger.error(
            "Reprise could not be installed (%s: %s); vLLM runs without it.",
            type(error).__name__,
            error,
            exc_info=error,
        )


def _register() -> None:
    from reprise.engine_ext.compat.registry import registry
    from reprise.engine_ext.core import logs
    from reprise.engine_ext.core.identity import PROPOSER_PATH

    logs.install()
    # The speculative config may also stand in a file; then the workers refuse.
    if any(PROPOSER_PATH in word for word in sys.argv):
        from reprise.engine_ext.checks import start_up

        start_up.check_once()
    if registry.unknown_version() is not None:
        logger.warning(
            "Reprise: %s; an engine with our proposer will not start.", registry.summary()
        )
        return
    apply_all()


def apply_all() -> None:
    """Apply what front ends and engine cores need; warn of what cannot be applied."""
    from reprise.engine_ext.compat.patches import Feature, Role
    from reprise.engine_ext.compat.registry import registry
    from reprise.engine_ext.kv_pins import engine_pins, system_prefix
    from reprise.engine_ext.request import input_hints
    from reprise.engine_ext.scheduling import (
        async_scheduling,
        cpu_placement,
        draft_lengths,
        draft_padding,
        draft_slots,
        failed_loads,
        runner_choice,
        step_exchange,
    )
    from reprise.engine_ext.speculator import installation
    from reprise.engine_ext.worker import undrafted_settings

    api_server: dict[Feature, object] = {
        Feature.TENANTS: input_hints,
        Feature.FRONT_END: _FrontEndHooks(),
        Feature.UNDRAFTED_SETTINGS: undrafted_settings,
        Feature.SYSTEM_PREFIX: system_prefix,
    }
    engine_core: dict[Feature, object] = {
        Feature.STEP_EXCHANGE: step_exchange,
        Feature.DRAFT_PADDING: draft_padding,
        Feature.FAILED_LOADS: failed_loads,
        Feature.ASYNC_SCHEDULING: async_scheduling,
        Feature.CPU_PLACEMENT: cpu_placement,  # outside of the one before
        Feature.RUNNER: runner_choice,
        Feature.SPECULATOR: installation,
        Feature.DRAFT_SLOTS: draft_slots,
        Feature.DRAFT_LENGTHS: draft_lengths,
        Feature.KV_PINS: engine_pins,
    }
    for role, features in ((Role.API_SERVER, api_server), (Role.ENGINE_CORE, engine_core)):
        for feature, hooks in features.items():
            if not registry.apply(feature, hooks, role=role):
                logger.warning("Reprise: %s", _consequence(feature))


def _consequence(feature: Any) -> str:
    """Say why a feature is not applied, and what that means."""
    from reprise.engine_ext.compat.patches import Feature
    from reprise.engine_ext.compat.registry import registry

    line = f"{feature.value}: {registry.problem(feature)}; "
    if registry.is_needed(feature):
        return line + "an engine with our proposer will not start."
    if feature is Feature.FRONT_END:
        return line + (
            "there will be no exact hits, control per request or metrics, drafts only, and "
            "requests without cache_salt share no cached answers unless REPRISE_NAMESPACE declares "
            "a single tenant."
        )
    return line + "vLLM's own is used."


class _FrontEndHooks:
    """The hook of `Feature.FRONT_END`: `AsyncLLM.from_vllm_config` and `from_engine_args` build an
    `EnhancedAsyncLLM` where the speculative config names our proposer.

    The class itself stays in place: whoever imported it by name gets the same, and `isinstance`
    holds. An engine with any other speculative config is built as ever.
    """

    def build_engine(
        self, original: Callable[..., Any], cls: type, *args: Any, **kwargs: Any
    ) -> Any:
        """Build an engine of the class that its config asks for."""
        from vllm.v1.engine.async_llm import AsyncLLM

        config = args[0] if args else kwargs.get("vllm_config", kwargs.get("engine_args"))
        if cls is AsyncLLM and _wants_enhancement(config):
            # Only now: who does not want it is spared what it imports.
            from reprise.engine_ext.async_llm import EnhancedAsyncLLM

            cls = EnhancedAsyncLLM
        return original(cls, *args, **kwargs)


def _wants_enhancement(config: Any) -> bool:
    """Return whether engine args or a vLLM config name our proposer."""
    from reprise.engine_ext.core.identity import PROPOSER_PATH, uses_our_proposer

    speculative = getattr(config, "speculative_config", None)
    if isinstance(speculative, Mapping):
        return bool(speculative.get("model") == PROPOSER_PATH)
    return speculative is not None and uses_our_proposer(config)
