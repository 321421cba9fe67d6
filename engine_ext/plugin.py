"""The general plugin: what vLLM calls in every process before it builds anything.

It changes nothing for an engine whose speculative config does not name our proposer: what it wraps
calls vLLM's own for those.
"""

from vllm.logger import init_logger

logger = init_logger(__name__)


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


def _keep_log_level() -> None:
    from reprise.engine_ext.core import log_level

    log_level.install()


def _enhance_front_end() -> None:
    from reprise.engine_ext.compat import replacement

    replacement.install()


def _allow_undrafted_settings() -> None:
    from reprise.engine_ext.compat import undrafted_settings

    undrafted_settings.allow_requests()


def _exchange_once_a_step() -> None:
    from reprise.engine_ext.compat import step_exchange

    step_exchange.install()


def _schedule_asynchronously() -> None:
    from reprise.engine_ext.compat import async_scheduling

    async_scheduling.install()


def _keep_off_worker_cores() -> None:
    from reprise.engine_ext.compat import cpu_placement

    cpu_placement.install()


def _carry_namespaces() -> None:
    from reprise.engine_ext.compat import input_hints

    input_hints.install()
