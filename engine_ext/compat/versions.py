"""The versions of vLLM that were read, and what is patched in each."""

from reprise.engine_ext.compat import v0_26, v0_32, v0_33
from reprise.engine_ext.compat.patches import Tables

TABLES: Tables = {each.version: each for each in (v0_26.TABLE, v0_32.TABLE, v0_33.TABLE)}
"""By minor version. Another vLLM is left as it is."""


def installed_version() -> str:
    """Read the version of the vLLM that is installed."""
    from vllm.version import __version__

    return str(__version__)
