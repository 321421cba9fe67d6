"""An extension of vLLM's worker, for `worker_extension_cls`: it tells what is compiled there."""

import torch
from torch._dynamo.utils import counters


class CompiledGraphs:
    """Methods for `collective_rpc`."""

    def num_compiled(self) -> int:
        """Count the graphs that `torch.compile` has made in this process."""
        return int(counters["stats"]["unique_graphs"])

    def ranks_compiled_for(self) -> list[int]:
        """Return the sizes of vocabularies that vLLM's function is ready for."""
        from reprise.engine_ext.worker import prompt_ranks

        return sorted(prompt_ranks._compiled_for)

    def forget_compiled(self) -> None:
        """Have everything compiled anew when it is called."""
        torch._dynamo.reset()
