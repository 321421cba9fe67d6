"""The general plugin: what vLLM calls in every process before it builds anything.

It changes nothing for an engine whose speculative config does not name our proposer: what it wraps
calls vLLM's own for those.
"""

from typing import TYPE_CHECKING

from vllm import envs
from vllm.logger import init_logger

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)

PROPOSER_PATH = "reprise.engine_ext.proposer.CacheHitProposer"


def register() -> None:
    """Entry point of the group `vllm.general_plugins`; may be called more than once.

    Never raises: what a plugin raises here would keep vLLM from starting at all.
    """
    for install in (
        _keep_log_level,
        _carry_namespaces,
        _enhance_front_end,
        _allow_undrafted_settings,
        _exchange_once_a_step,
        _schedule_asynchronously,
        _keep_off_worker_cores,
    ):
        try:
            install()
        except Exception as error:
            logger.error(
                "Reprise: %s could not be installed (%s: %s); vLLM runs without it.",
                install.__name__.strip("_").replace("_", " "),
                type(error).__name__,
                error,
            )


def uses_our_proposer(vllm_config: "VllmConfig") -> bool:
    """Whether this engine's speculative config names `CacheHitProposer`."""
    speculative = vllm_config.speculative_config
    return speculative is not None and speculative.model == PROPOSER_PATH


def unsupported_start() -> str | None:
    """Why our proposer must not run as vLLM was started here; None if it may.

    The Rust front end would carry no namespaces to the workers: one tenant's answers would draft
    for another.
    """
    if envs.VLLM_USE_RUST_FRONTEND:
        return (
            "Reprise needs vLLM's Python front end, and VLLM_USE_RUST_FRONTEND asks for the other "
            "one: unset it."
        )
    return None


def _keep_log_level() -> None:
    from reprise.engine_ext import log_level

    log_level.install()


def _enhance_front_end() -> None:
    from reprise.engine_ext import replacement

    replacement.install()


def _allow_undrafted_settings() -> None:
    from reprise.engine_ext import undrafted_settings

    undrafted_settings.allow_requests()


def _exchange_once_a_step() -> None:
    from reprise.engine_ext import step_exchange

    step_exchange.install()


def _schedule_asynchronously() -> None:
    from reprise.engine_ext import async_scheduling

    async_scheduling.install()


def _keep_off_worker_cores() -> None:
    from reprise.engine_ext import cpu_placement

    cpu_placement.install()


def _carry_namespaces() -> None:
    from reprise.engine_ext import input_hints

    input_hints.install()
