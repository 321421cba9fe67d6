"""What vLLM's processes import, for the one of which they are forked (`warm_starts.py`)."""

import contextlib
import gc
import importlib
import os

import warm_starts

_MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.models.llama",
    "vllm.v1.structured_output",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
)

_before = dict(os.environ)
with contextlib.suppress(ImportError):  # finds where the name of a process is by its environment
    import setproctitle

    setproctitle.getproctitle()
for _name in _MODULES:
    with contextlib.suppress(ImportError):  # other versions of vLLM may have others
        importlib.import_module(_name)
warm_starts.become_server(_before)
gc.collect()
gc.freeze()  # else each fork copies the pages of all objects when it looks through them
gc.unfreeze = lambda: None  # type: ignore[assignment]  # vLLM looks through them before it ends
