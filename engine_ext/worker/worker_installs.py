"""In the worker: applies what drafting needs, and what makes steps with drafts cheap.

Without the latter, vLLM does it by itself.
"""

from collections.abc import Callable, Mapping

from vllm.config import VllmConfig
from vllm.logger import init_logger

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.same_samples import drafts_keep_samples
from reprise.engine_ext.worker.verification.rank_agreement import all_ranks_can
from reprise.engine_ext.worker.verification.state import Installation, announce

logger = init_logger(__name__)

_ALL = "apply in worker"


def apply_needed(config: RepriseConfig, hooks: Mapping[Feature, object], advice: str = "") -> None:
    """Apply what drafting cannot do without in this process.

    Args:
        config: the engine's settings.
        hooks: by feature; without the first, requests cannot be told apart.
        advice: what else may be done, for the error.

    Raises:
        ValueError: this vLLM is not one whose requests and tenants can be told apart.
    """
    for feature, implementation in hooks.items():
        registry.apply(feature, implementation, role=Role.WORKER)
    requests = next(iter(hooks))
    for feature, role in ((requests, Role.WORKER), (Feature.TENANTS, Role.API_SERVER)):
        problem = registry.problem(feature, role)
        if problem is not None and (feature is requests or config.namespace is None):
            raise ValueError(
                f"Reprise cannot keep tenants apart with this vLLM ({feature.value}: {problem})"
                f"{advice}"
            )


def install(config: RepriseConfig, vllm_config: VllmConfig, errors: ErrorCounter) -> Installation:
    """Apply all that can be on model runner V1, on every rank; counts in `errors` what fails.

    To be called before the runner builds its rejection sampler, as a drafter is.

    Returns:
        What is in force about verification in this engine.
    """
    installation = Installation(config.verification)
    announce(installation, vllm_config.speculative_config)
    with errors.recording(_ALL):
        _install(config, installation, errors)
    # Each rank comes by here, whatever has failed: none verifies otherwise than the others.
    failed = errors.counts().keys() & {_ALL, f"apply {Feature.VERIFICATION.value}"}
    if not all_ranks_can(not failed):
        installation.deactivate()
    return installation


def install_on_v2(
    config: RepriseConfig, vllm_config: VllmConfig, errors: ErrorCounter
) -> Installation:
    """Apply all that can be on model runner V2, on every rank, as `install`.

    Raises:
        ValueError: requests with a seed are drafted for, and would not keep their samples.
    """
    installation = Installation(config.verification)
    announce(installation, vllm_config.speculative_config)
    if not drafts_keep_samples(vllm_config, config):
        installation.deactivate()
        return installation
    if (problem := registry.problem(Feature.VERIFICATION_V2, Role.WORKER)) is not None:
        logger.warning("Reprise: drafts are verified by vLLM: %s.", problem)
        installation.deactivate()
        return installation
    applying = f"apply {Feature.VERIFICATION_V2.value}"
    with errors.recording(applying):
        verify_on_v2(installation)
    if not all_ranks_can(applying not in errors.counts()):
        raise ValueError(
            "Reprise cannot verify drafts on every rank, see the error above. With "
            "verification.enabled=false vLLM verifies, and requests with a seed get no drafts."
        )
    return installation


def _install(config: RepriseConfig, installation: Installation, errors: ErrorCounter) -> None:
    from reprise.engine_ext.worker import unfinished_prompts
    from reprise.engine_ext.worker.forward import cpu_kernels, full_graphs, lone_tokens

    installs: dict[str, Callable[[], object]] = {
        "CPU kernels": lambda: cpu_kernels.prepare(batch_invariant=config.cpu_batch_invariant),
        Feature.LONE_TOKENS.value: lambda: _apply(Feature.LONE_TOKENS, lone_tokens),
        Feature.SAMPLING_FIX.value: fix_sampling,
        Feature.UNFINISHED_PROMPTS.value: lambda: _apply(
            Feature.UNFINISHED_PROMPTS, unfinished_prompts
        ),
        Feature.VERIFICATION.value: lambda: verify(installation),
        Feature.DRAFT_METADATA.value: describe_drafts_in_one_copy,
        Feature.FULL_GRAPHS.value: lambda: _apply(Feature.FULL_GRAPHS, full_graphs),
    }
    for name, install_one in installs.items():
        with errors.recording(f"apply {name}"):
            install_one()


def fix_sampling() -> None:
    """Replace vLLM's expansion of sampling parameters in this process, if it is wrong."""
    from reprise.engine_ext.worker import sampling_fix

    if sampling_fix.is_needed():
        _apply(Feature.SAMPLING_FIX, sampling_fix)
        logger.warning_once(
            "Reprise: this vLLM misplaces the temperature of drafted tokens on the CPU, with any "
            "drafter; the expansion is replaced in this process."
        )


def verify(installation: Installation) -> None:
    """Verify drafts in one pass on model runner V1, if the settings want it."""
    from reprise.engine_ext.worker.verification import on_v1

    if installation.active:
        on_v1.prepare(installation)
        _apply_or_deactivate(Feature.VERIFICATION, on_v1, installation)


def verify_on_v2(installation: Installation) -> None:
    """Verify drafts in one pass on model runner V2, if the settings want it."""
    from reprise.engine_ext.worker.verification import on_v2

    if installation.active:
        _apply_or_deactivate(Feature.VERIFICATION_V2, on_v2, installation)


def _apply_or_deactivate(feature: Feature, hooks: object, installation: Installation) -> None:
    try:
        _apply(feature, hooks)
    except Exception:
        installation.deactivate()
        raise


def describe_drafts_in_one_copy() -> None:
    """Describe a batch's drafts in one array."""
    from reprise.engine_ext.worker import draft_metadata

    draft_metadata.compile_now()
    _apply(Feature.DRAFT_METADATA, draft_metadata)


def rank_prompts(vocabulary_size: int, errors: ErrorCounter) -> None:
    """On the CPU's model runner V1: have no verified answer wait for a compiler, or miss one."""
    from reprise.engine_ext.worker import prompt_ranks

    with errors.recording(f"apply {Feature.PROMPT_RANKS.value}"):
        _apply(Feature.PROMPT_RANKS, prompt_ranks)
        prompt_ranks.compile_at_start(vocabulary_size)


def _apply(feature: Feature, hooks: object) -> None:
    """Apply a feature in this process.

    Raises:
        RuntimeError: this vLLM is not as expected; it is left as it is.
    """
    if not registry.apply(feature, hooks, role=Role.WORKER):
        raise RuntimeError(f"{feature.value}: {registry.problem(feature, Role.WORKER)}")
