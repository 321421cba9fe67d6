"""Has a worker on model runner V2 build our speculator where the config names our proposer.

The hook of `Feature.SPECULATOR` that the plugin applies in every process.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.core.identity import uses_our_proposer

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig


def init_speculator(
    original: Callable[..., Any],
    vllm_config: "VllmConfig",
    device: "torch.device",
    req_states: Any,
) -> Any:
    """Build ours, or vLLM's for every other config."""
    if not uses_our_proposer(vllm_config):
        return original(vllm_config, device, req_states)
    # Only now: who does not want it is spared what it imports.
    from reprise.engine_ext.speculator.device_speculator import DeviceSpeculator

    return DeviceSpeculator(vllm_config, device, req_states)
