"""Have every Python process of a run take this processor for another one.

    OTHER_PROCESSOR=avx2 PYTHONPATH=tests/other_processor python -m pytest -m identity

`avx2`: nothing beyond AVX2 is used. torch, oneDNN and MKL have environment variables for that; vLLM
has none: it chooses its kernels by what torch says of the processor, so that is changed as soon as
torch has been imported. `amx`: torch says that there are AMX tiles, no more; who then uses them
where there are none ends with an illegal instruction.

Python imports a module of this name when it starts, in each process of an engine too.
"""

import contextlib
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

_LIMITS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "amx": {},
}
_BEYOND_AVX2 = ("avx512", "avx10", "amx")


def _seen(processor, known):
    """What torch is to say of the processor, from what it says of this one."""
    if processor == "amx":
        return {**known, "amx_tile": True}
    return {name: known[name] and not name.startswith(_BEYOND_AVX2) for name in known}


class _TorchsView(MetaPathFinder):
    """Finds `torch.cpu`, and changes what it knows."""

    def __init__(self, processor):
        self._processor = processor

    def find_spec(self, fullname, _path=None, _target=None):
        if fullname != "torch.cpu":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            known = module.get_capabilities
            module.get_capabilities = lambda: _seen(self._processor, known())

        spec.loader.exec_module = exec_module
        return spec


# Of two modules of this name only the first on the path is imported.
with contextlib.suppress(ImportError):
    import light_processes

    light_processes.begin()

if processor := os.environ.get("OTHER_PROCESSOR"):
    os.environ.update(_LIMITS[processor])
    sys.meta_path.insert(0, _TorchsView(processor))
