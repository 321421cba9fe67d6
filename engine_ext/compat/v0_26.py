"""What is patched in vLLM 0.26, the last for PyTorch 2.11: no front end, model runner V1 only."""

from dataclasses import replace

from reprise.engine_ext.compat import v0_32
from reprise.engine_ext.compat.patches import Feature

_WITHOUT = frozenset(
    {
        Feature.FRONT_END,
        Feature.HTTP,
        Feature.SINGLE_FLIGHT,
        Feature.VERIFIED_REPLAY,
        Feature.ONE_TOKEN_OUTPUTS,
        Feature.UNDRAFTED_SETTINGS,
        Feature.RUNNER,
        Feature.SPECULATOR,
        Feature.DRAFT_SLOTS,
        Feature.DRAFT_LENGTHS,
        Feature.KV_PINS,
        Feature.SYSTEM_PREFIX,
        Feature.VERIFICATION_V2,  # its sampler draws other noise
    }
)

TABLE = replace(
    v0_32.TABLE,
    version="0.26",
    patches=tuple(patch for patch in v0_32.TABLE.patches if patch.feature not in _WITHOUT),
)
