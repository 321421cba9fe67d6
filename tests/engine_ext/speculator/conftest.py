"""Engines on vLLM's model runner V2, on the CPU in Triton's interpreter."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from light_processes import BY_WORDS
from warm_starts import start_program

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH
from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.live.engine_environment import engine_environment

PROGRAM = Path(__file__).with_name("engine_program.py")
V2_ON_CPU = Path(__file__).resolve().parents[2] / "v2_on_cpu"
_ENDS_WITHIN_S = 100.0
# vLLM wants a NUMA node for each rank otherwise, and Inductor a driver that can compile.
TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1"}


def environment_of_v2(*, with_reprise: bool) -> dict[str, str]:
    """The environment of a process in which vLLM chooses V2."""
    path = [str(V2_ON_CPU), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **engine_environment(with_reprise=with_reprise),
        **(BY_WORDS if with_reprise else {}),
        "V2_ON_CPU": "1",
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(path),
    }


@pytest.fixture
def v2_environment() -> dict[str, str]:
    """For other processes than engines."""
    return environment_of_v2(with_reprise=True)


@pytest.fixture
def plain_environment() -> dict[str, str]:
    """Likewise, of a process in which vLLM finds no Triton."""
    return engine_environment(with_reprise=True)


class Engine:
    """An engine in a process of its own, see `engine_program.py`."""

    def __init__(self, *, with_reprise: bool, environment: dict[str, str], **settings: Any) -> None:
        variables = environment_of_v2(with_reprise=with_reprise) | environment
        variables["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # for a function to the worker
        # With a schedule of the user's, every step has drafts, of full length.
        always = {"num_speculative_tokens_per_batch_size": [[1, 4, 4]]}
        speculative = {"model": PROPOSER_PATH, "num_speculative_tokens": 4, **always}
        chosen = {
            "model": str(demo_model_path()),
            "dtype": DEMO_DTYPE,
            "enforce_eager": True,
            "max_num_seqs": 4,
            "max_model_len": 256,
            "kv_cache_memory_bytes": 1 << 26,
            "disable_log_stats": False,
            "speculative_config": speculative if with_reprise else None,
            **settings,
        }
        reads, writes = os.pipe()
        answers, says = os.pipe()
        self._input, self._output = os.fdopen(writes, "w"), os.fdopen(answers)
        self._process = start_program(
            ["-m", PROGRAM.stem],
            environment=variables,
            folder=str(PROGRAM.parent),
            stdin=reads,
            stdout=says,
            stderr=sys.__stderr__.fileno(),
        )
        os.close(reads)
        os.close(says)
        self._send(chosen)

    def _send(self, message: Any) -> Any:
        self._input.write(json.dumps(message) + "\n")
        self._input.flush()
        for line in self._output:
            if line.startswith("REPLY "):
                return json.loads(line.removeprefix("REPLY "))
        raise AssertionError(f"the engine has ended: {self._process.wait()}")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda **arguments: self._send([name, arguments])

    def end(self) -> None:
        """End its processes."""
        with contextlib.suppress(OSError):  # it may have ended
            self._input.close()
        self._process.wait(_ENDS_WITHIN_S)
        self._output.close()


@pytest.fixture(scope="module")
def start_engine() -> Iterator[Callable[..., Engine]]:
    """Starts engines on V2, and ends them after the last test of the file."""
    started: list[Engine] = []

    def start(*, with_reprise: bool, environment: dict[str, str] | None = None, **settings: Any):  # type: ignore[no-untyped-def]
        engine = Engine(with_reprise=with_reprise, environment=environment or {}, **settings)
        started.append(engine)
        return engine

    yield start
    for engine in started:
        engine.end()


@pytest.fixture(scope="module")
def model_for_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose heads two ranks can share; its answers mean nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("two-ranks")
    shutil.copytree(demo_model_path(), folder, dirs_exist_ok=True)
    for weights in folder.glob("*.safetensors*"):
        weights.unlink()
    demo = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    kept = {name: demo[name] for name in names if name in demo}
    config = LlamaConfig(**sizes, **heads, **kept, max_position_embeddings=512)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder
