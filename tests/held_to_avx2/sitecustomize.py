"""Hold every Python process of a run to AVX2, as on a processor without AVX-512.

    PYTHONPATH=tests/held_to_avx2 python -m pytest -m identity

Python imports a module of this name when it starts, in each process of an engine too. torch, oneDNN
and MKL have environment variables for it. vLLM has none: it chooses its kernels by what torch says
of the processor, so that is changed as soon as torch has been imported.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

_LIMITS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
_BEYOND = ("avx512", "amx", "avx10")


class _TorchsView(MetaPathFinder):
    """Finds `torch.cpu`, and lets it know of nothing beyond AVX2."""

    def find_spec(self, fullname, _path=None, _target=None):
        if fullname != "torch.cpu":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            known = module.get_capabilities
            module.get_capabilities = lambda: {
                name: value if not name.startswith(_BEYOND) else False
                for name, value in known().items()
            }

        spec.loader.exec_module = exec_module
        return spec


os.environ.update(_LIMITS)
sys.meta_path.insert(0, _TorchsView())
