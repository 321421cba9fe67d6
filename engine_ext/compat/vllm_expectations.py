"""What the front end relies on in vLLM, checked before anything of vLLM's is touched."""

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.version import __version__ as vllm_version

from reprise.engine_ext.compat.expected_parameters import unexpected_parameters

_SUPPORTED_VLLM = "0.32."

_LEADING_PARAMETERS: dict[tuple[type, str], tuple[str, ...]] = {
    (AsyncLLM, "__init__"): ("self", "vllm_config", "executor_class", "log_stats"),
    (AsyncLLM, "from_vllm_config"): ("vllm_config",),
    (AsyncLLM, "from_engine_args"): ("engine_args",),
    (AsyncLLM, "add_request"): ("self", "request_id", "prompt", "params"),
    (AsyncLLM, "_add_request"): ("self", "request", "prompt", "parent_req", "index", "queue"),
    (AsyncLLM, "generate"): ("self", "prompt", "sampling_params", "request_id"),
    (AsyncLLM, "_run_output_handler"): ("self",),
    (AsyncMPClient, "call_utility_all_async"): ("self", "method", "args"),
    (OutputProcessor, "process_outputs"): (
        "self",
        "engine_core_outputs",
        "engine_core_timestamp",
        "iteration_stats",
        "weight_version",
    ),
    (OutputProcessor, "abort_requests"): ("self", "request_ids", "internal"),
    (OutputProcessor, "add_request"): (
        "self",
        "request",
        "prompt",
        "parent_req",
        "request_index",
        "queue",
    ),
}


def unexpected_in_vllm() -> str | None:
    """What about this vLLM is not as expected; None if nothing is."""
    if not vllm_version.startswith(_SUPPORTED_VLLM):
        return f"this is vLLM {vllm_version}, expected {_SUPPORTED_VLLM}x"
    return unexpected_parameters(_LEADING_PARAMETERS, leading=True)
