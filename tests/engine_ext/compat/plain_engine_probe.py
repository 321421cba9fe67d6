"""Run by test_plain_engine.py: a plain vLLM engine tells what its processes are like, as JSON."""

import contextlib
import json
import os
import sys
from pathlib import Path

# Different in any two runs.
_OF_ONE_RUN = {"VLLM_DIST_IDENT", "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME", "VLLM_PLUGINS"}


def cores_of(process: str | int) -> list[tuple[int, ...]]:
    """The sets of cores that the threads of a process may use."""
    found = set()
    for task in os.listdir(f"/proc/{process}/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            found.add(tuple(sorted(os.sched_getaffinity(int(task)))))
    return sorted(found)


def process_state() -> dict[str, object]:
    """What a plugin could change in this process: environment, cores, what is loaded."""
    return {
        "environment": {k: v for k, v in os.environ.items() if k not in _OF_ONE_RUN},
        "cores": cores_of("self"),
        "heavy": sorted({"faiss", "numba", "sentence_transformers"} & set(sys.modules)),
    }


def worker_state(worker: object) -> dict[str, object]:
    """In the worker: that, and the instruction set and threads that the model computes with."""
    import torch

    layers = worker.vllm_config.compilation_config.static_forward_context.values()  # type: ignore[attr-defined]
    return {
        **process_state(),
        "instruction_sets": sorted({layer.isa for layer in layers if hasattr(layer, "isa")}),
        "num_threads": torch.get_num_threads(),
        "drafts": hasattr(worker.model_runner, "drafter"),  # type: ignore[attr-defined]
    }


def main() -> None:
    """Argument: the model's folder."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=sys.argv[1],
        enforce_eager=True,
        max_num_seqs=4,
        max_model_len=256,
        kv_cache_memory_bytes=1 << 28,
    )
    (worker,) = llm.collective_rpc(worker_state)
    params = SamplingParams(temperature=0.0, max_tokens=24, logprobs=1)
    output = llm.generate("How do I return a parcel?", params, use_tqdm=False)[0].outputs[0]
    (engine_core,) = llm.llm_engine.engine_core.resources.engine_manager.processes
    maps = Path(f"/proc/{engine_core.pid}/maps").read_text()
    report = {
        "front end": process_state(),
        "worker": worker,
        "engine core": {"cores": cores_of(engine_core.pid), "faiss": "faiss" in maps},
        "tokens": list(output.token_ids),
        "logprobs": [next(iter(each.values())).logprob for each in output.logprobs],
    }
    print("REPORT" + json.dumps(report, sort_keys=True))
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
