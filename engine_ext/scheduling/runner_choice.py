"""Which of vLLM's model runners an engine with our proposer gets, and why.

vLLM gives every engine V2 where there is Triton, and V1 to those whose drafter is a custom class.
Ours also drafts on V2: for it that one reason is taken away, so that vLLM chooses as it does for an
engine without drafts. The speculative config stays `custom_class` throughout: should V1 be chosen
after all, in whatever process and for whatever reason, that is our own proposer, and a V2 runner
without our speculator ends the start, as `custom_class` is none that it knows.

vLLM 0.32 also decides by the drafter whether to schedule asynchronously. While it checks a config
of an engine on V2, it is shown the drafter of its own that is nearest to ours: model-free, on the
device.

The hooks of `Feature.RUNNER`, in front end and engine core; a worker reads the same config.
"""

from collections.abc import Callable
from typing import Any

from vllm.config import VllmConfig
from vllm.logger import init_logger

from reprise.engine_ext.compat.engine_state import mark_of, set_mark, shown_as_method
from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import engine_config
from reprise.engine_ext.core.identity import runs_on_v2, uses_our_proposer
from reprise.engine_ext.scheduling.machine_runner import machines_reason_for_v1

logger = init_logger(__name__)

_SETTING = "runner"
_OUR_METHOD = "speculative method 'custom_class'"
_NEAREST_METHOD = "ngram_gpu"


def reason_for_v1(config: VllmConfig) -> str | None:
    """Say why an engine with our proposer gets model runner V1; None: it gets V2."""
    if runs_on_v2(config):
        return None
    if (ours := _our_reason_for_v1(config)) is not None:
        return ours
    if (machines := machines_reason_for_v1()) is not None:
        return machines
    features = ", ".join(config._get_v2_model_runner_unsupported_features())
    return f"V2 does not support {features}"


def unsupported_by_v2(original: Callable[..., list[str]], config: VllmConfig) -> list[str]:
    """List what vLLM's V2 does not support, without our drafter where it may run there."""
    found = original(config)
    if not uses_our_proposer(config) or _our_reason_for_v1(config) is not None:
        return found
    return [feature for feature in found if feature != _OUR_METHOD]


def check_config(original: Callable[..., None], config: VllmConfig) -> None:
    """Run vLLM's check so that an engine of ours on V2 may schedule asynchronously."""
    if not uses_our_proposer(config) or not runs_on_v2(config):
        original(config)
        return
    with shown_as_method(config.speculative_config, _NEAREST_METHOD):
        original(config)


def create_engine_config(
    original: Callable[..., VllmConfig], args: Any, *others: Any, **kwargs: Any
) -> VllmConfig:
    """Run vLLM's, and say which runner an engine of ours gets.

    Raises:
        ValueError: the settings want V2, and it cannot be.
    """
    config = original(args, *others, **kwargs)
    if uses_our_proposer(config):
        logger.info("Reprise: %s.", describe_choice(config))
        refuse_other_runner(config)
    return config


def describe_choice(config: VllmConfig) -> str:
    """Say in one line which runner an engine gets, and why."""
    reason = reason_for_v1(config)
    if reason is not None:
        return f"model runner V1: {reason}"
    is_async = config.scheduler_config.async_scheduling
    return f"model runner V2 with {'a' if is_async else ''}synchronous scheduling: vLLM's choice"


def refuse_other_runner(config: VllmConfig) -> None:
    """Check that an engine has the runner that its settings want.

    Raises:
        ValueError: it has not.
    """
    if _setting(config) == "v2" and (reason := reason_for_v1(config)) is not None:
        raise ValueError(
            f"Reprise: engine.runner is v2, and this engine gets model runner V1: {reason}."
        )


def _our_reason_for_v1(config: VllmConfig) -> str | None:
    if (setting := _setting(config)) == "v1":
        return "engine.runner is v1"
    if setting is None:
        return "the settings of Reprise are wrong"  # the proposer, which reads them next, says how
    if config.parallel_config.pipeline_parallel_size > 1:
        return "pipeline parallelism"
    for feature in (Feature.SPECULATOR, Feature.DRAFT_SLOTS):
        if (problem := registry.problem(feature, Role.ENGINE_CORE)) is not None:
            return f"{feature.value}: {problem}"
    return None


def _setting(config: VllmConfig) -> str | None:
    """Read `engine.runner` once, and keep it with the config, which other processes get copies of;
    None: the settings are wrong."""
    kept: str | None = mark_of(config.scheduler_config, _SETTING)
    if kept is None:
        try:
            kept = engine_config(config).engine.runner
        except ValueError:
            return None
        set_mark(config.scheduler_config, _SETTING, kept)
    return kept
