"""What is patched in vLLM 0.33: what is patched in 0.32, but for one check of configs.

All signatures and fields are the same. What differs is in the hooks: a rejection sampler may accept
more than equal tokens (`use_fly`, `fly_window_size`), and an engine core output may carry an error.
Whether an engine on V2 schedules asynchronously does not depend on its drafter there.
"""

from dataclasses import replace

from reprise.engine_ext.compat import v0_32, v0_32_runner_v2

TABLE = replace(
    v0_32.TABLE,
    version="0.33",
    patches=tuple(
        patch for patch in v0_32.TABLE.patches if patch is not v0_32_runner_v2.CHECK_CONFIG
    ),
)
