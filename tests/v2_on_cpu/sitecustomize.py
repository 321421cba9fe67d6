"""Have vLLM run its model runner V2 on the CPU, with asynchronous scheduling, in every process.

    V2_ON_CPU=1 PYTHONPATH=tests/v2_on_cpu python ...

For tests only: the kernels run in Triton's interpreter, thousands of times slower than on a GPU.
Five things stand in the way, and each is changed as soon as its module has been imported:

* vLLM looks for an active Triton driver, and takes none for "no Triton", hence V1;
* the CPU platform turns asynchronous scheduling off;
* the interpreter makes an int32 of `int1 & int1` of a block and a scalar, and refuses it as a mask;
* the interpreter counts a `tl.range` in plain numbers, where vLLM's top-k kernel has tensors;
* plain vLLM gets V2 by itself then; with `VLLM_USE_V2_MODEL_RUNNER=0` it is V1 all the same.

vLLM's adaptive verification wants full CUDA graphs that take requests of any lengths, and what each
of them costs, measured while it captures them. With `V2_ON_CPU=adaptive` it runs without graphs,
and every token costs the same.

Python imports a module of this name when it starts, in each process of an engine too.
"""

import contextlib
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

_TOKEN_COST = 0.15
"""Of what a step of one token takes."""


class _Change(MetaPathFinder):
    """Finds one module, once, and changes it after it has been executed."""

    def __init__(self, name, change):
        self._name = name
        self._change = change

    def find_spec(self, fullname, _path=None, _target=None):
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self._change(module)

        spec.loader.exec_module = exec_module
        return spec


def _add_cpu_driver(backends_module):
    class Driver:
        @staticmethod
        def is_active():
            return True

    some = next(iter(backends_module.backends.values()))
    backends_module.backends["cpu"] = type(
        "CpuBackend", (), {"compiler": some.compiler, "driver": Driver}
    )()


def _keep_async_scheduling(cpu_platform):
    platform = cpu_platform.CpuPlatform
    check = platform.check_and_update_config.__func__

    def check_and_update_config(cls, vllm_config):
        wanted = vllm_config.scheduler_config.async_scheduling
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    platform.check_and_update_config = classmethod(check_and_update_config)


def _cast_masks(interpreter):
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def as_bool(mask):
        mask.data = mask.data.astype(bool)
        return mask

    builder.create_masked_load = lambda self, ptr, mask, *others: load(
        self, ptr, as_bool(mask), *others
    )
    builder.create_masked_store = lambda self, ptr, value, mask, *others: store(
        self, ptr, value, as_bool(mask), *others
    )


def _count_in_tensors(interpreter):
    patch = interpreter._patch_lang_core

    def patch_lang_core(lang, scope):
        patch(lang, scope)
        plain = lang.range

        def as_tensors(*limits, **options):
            for number in plain(*limits, **options):
                handle = interpreter.TensorHandle(
                    interpreter.np.array([number], interpreter.np.int32), lang.int32
                )
                yield lang.tensor(handle, lang.int32)

        scope.set_attr(lang, "range", as_tensors)

    interpreter._patch_lang_core = patch_lang_core


def _change_interpreter(interpreter):
    _cast_masks(interpreter)
    _count_in_tensors(interpreter)


def _allow_adaptive_verification(config):
    config.VllmConfig._validate_adaptive_verification = lambda _: None


def _verify_adaptively(adaptive_verification):
    manager = adaptive_verification.AdaptiveVerificationManager
    init = manager.__init__

    def init_with_costs(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.set_cost_curves([(1, 0.0)], [(1, 1.0), (2, 1.0 + _TOKEN_COST)])

    manager.__init__ = init_with_costs
    adaptive_verification.get_varlen_cudagraph_unsupported_backend = lambda *_, **__: None
    adaptive_verification.resolve_adaptive_cudagraph_mode = lambda mode, **_: mode


# Of two modules of this name only the first on the path is imported.
with contextlib.suppress(ImportError):
    import light_processes

    light_processes.begin()

if os.environ.get("V2_ON_CPU"):
    os.environ["TRITON_INTERPRET"] = "1"
    for _name, _change in (
        ("triton.backends", _add_cpu_driver),
        ("vllm.platforms.cpu", _keep_async_scheduling),
        ("triton.runtime.interpreter", _change_interpreter),
    ):
        sys.meta_path.insert(0, _Change(_name, _change))
    if os.environ["V2_ON_CPU"] == "adaptive":
        _module = "vllm.v1.worker.gpu.spec_decode.adaptive_verification"
        sys.meta_path.insert(0, _Change("vllm.config.vllm", _allow_adaptive_verification))
        sys.meta_path.insert(0, _Change(_module, _verify_adaptively))
