"""Whether a request with a seed may have drafts: only where they change no sample."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

    from reprise.engine_ext.core.config import RepriseConfig


def promises_a_sample(params: "SamplingParams | None") -> bool:
    """Return whether a seed promises the same sample every time. Greedy answers take no random
    numbers, whatever their seed."""
    if params is None or params.seed is None:
        return False
    from vllm.sampling_params import SamplingType

    return params.sampling_type is not SamplingType.GREEDY


def drafts_keep_samples(vllm_config: Any, config: "RepriseConfig") -> bool:
    """Return whether the settings have drafts verified so that a seed gives the sample that it
    gives without: on model runner V2 and on a CPU, unless vLLM verifies there by itself. Its
    rejection sampling spends the request's random numbers differently when there are drafts."""
    if config.verification.enabled is False:
        return False
    if vllm_config.use_v2_model_runner:
        # Ranks that share out a batch do not all come by where they have to agree.
        return not vllm_config.parallel_config.enable_batch_sharded_sampling
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())
