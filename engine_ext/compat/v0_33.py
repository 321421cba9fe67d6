"""What is patched in vLLM 0.33, with its model runner V1: what is patched in 0.32.

All signatures and fields are the same. What differs is in the hooks: a rejection sampler may accept
more than equal tokens (`use_fly`, `fly_window_size`), and an engine core output may carry an error.
"""

from dataclasses import replace

from reprise.engine_ext.compat import v0_32

TABLE = replace(v0_32.TABLE, version="0.33")
