"""What a machine and its environment say about vLLM's model runner, whatever the engine.

Apart from `runner_choice`, which imports all of vLLM's configuration: that takes seconds.
"""

from vllm import envs
from vllm.triton_utils import HAS_TRITON


def machines_reason_for_v1() -> str | None:
    """Say why every engine in this environment gets V1; None: that depends on the engine."""
    if envs.VLLM_USE_V2_MODEL_RUNNER is False:
        return "VLLM_USE_V2_MODEL_RUNNER=0"
    return None if HAS_TRITON else "vLLM finds no Triton driver here"
