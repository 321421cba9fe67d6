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
_VOCABULARY_SIZE = 1536  # the demo model's


def _rank_tokens() -> None:
    """Have the function made that ranks the tokens of a prompt: with our plugin each worker makes
    it when it starts, which takes two seconds, and each of vLLM's when it is first asked to."""
    try:
        import torch
        from vllm.v1.sample.ops import logprobs

        with torch.inference_mode():
            x, values = torch.zeros(2, _VOCABULARY_SIZE), torch.zeros(2, 1)
            torch._dynamo.decorators.mark_unbacked(x, 0)
            torch._dynamo.decorators.mark_unbacked(values, 0)
            logprobs.batched_count_greater_than(x, values)
    except Exception:  # without a compiler, or of another version of vLLM
        return


_before = dict(os.environ)
with contextlib.suppress(ImportError):  # finds where the name of a process is by its environment
    import setproctitle

    setproctitle.getproctitle()
for _name in _MODULES:
    with contextlib.suppress(ImportError):  # other versions of vLLM may have others
        importlib.import_module(_name)
if "V2_ON_CPU" not in os.environ:
    _rank_tokens()
warm_starts.become_server(_before)
gc.collect()
gc.freeze()  # else each fork copies the pages of all objects when it looks through them
gc.unfreeze = lambda: None  # type: ignore[assignment]  # vLLM looks through them before it ends
