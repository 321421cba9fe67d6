"""An engine in this process that is asked, and the tier that it shares with others."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from vllm.sampling_params import RequestOutputKind, SamplingParams

from reprise.engine_ext.async_llm import EnhancedAsyncLLM
from reprise.retrieval.api.answer import Answer, token_bytes
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.tests.engine_ext.front_ends import wait_longer

FINAL, DELTA = RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA


class Asked:
    """An engine, and what it says."""

    def __init__(self, model: Path, url: str, **settings: Any) -> None:
        chosen: dict[str, Any] = {
            "model": str(model),
            "served_model_name": "demo",
            "dtype": "float32",
            "enforce_eager": True,
            "max_num_seqs": 4,
            "max_model_len": 512,
            "kv_cache_memory_bytes": 1 << 28,
            "additional_config": {
                "reprise": {
                    "retrieval": {"url": url, "embedding_model": "lexical", "clauses": False},
                    "serving": {"exact_budget_s": 1.0},
                }
            },
            **settings,
        }
        self.engine = EnhancedAsyncLLM(**chosen)
        wait_longer(self.front_end)
        self._count = 0
        self.pieces: list[int] = []
        """Tokens of each output of the last request."""

    @property
    def front_end(self) -> Any:
        return self.engine.front_end

    def counts(self, *names: str) -> tuple[int, ...]:
        return tuple(self.front_end.counts[name] for name in names)

    async def ask(
        self,
        prompt: str | list[int],
        *,
        kind: RequestOutputKind = FINAL,
        salt: str = "",
        **params: Any,
    ) -> tuple[list[int], str, str | None, Any]:
        """Token ids, text, how it ended."""
        self._count += 1
        settings = SamplingParams(
            output_kind=kind, **{"temperature": 0.0, "max_tokens": 60, **params}
        )
        name = "prompt" if isinstance(prompt, str) else "prompt_token_ids"
        given: Any = {name: prompt, **({"cache_salt": salt} if salt else {})}
        tokens: list[int] = []
        text, last = "", None
        self.pieces = []
        async for last in self.engine.generate(given, settings, f"r{self._count}"):
            tokens += last.outputs[0].token_ids
            self.pieces.append(len(last.outputs[0].token_ids))
            text += last.outputs[0].text
        assert last is not None
        self.last = last
        return tokens, text, last.outputs[0].finish_reason, last.outputs[0].stop_reason

    async def from_nothing(self, prompt: str | list[int], **params: Any) -> Any:
        """Nothing stored is looked at, nor is a prefix that is cached."""
        return await self.ask(prompt, **params, extra_args={"reprise_cache": "off"})

    async def written(self) -> None:
        """Wait until all is in the tier, and forget it here."""
        assert await asyncio.to_thread(self.engine._retriever.flush, 60)  # type: ignore[union-attr]
        self.front_end.exact.memory.clear()
        await self.engine.reset_prefix_cache()


def change(url: str, changed: Callable[[list[int]], list[int]]) -> None:
    """Have the tier say something else."""
    tier = open_tier(url)
    assert tier is not None
    for name in tier.namespaces():
        for answer in list(tier.exact_answers(name)):
            token_ids = changed(answer.response_token_ids.tolist())
            tier.put([msgspec.structs.replace(answer, response_tokens=token_bytes(token_ids))])
    tier.close()


def stored(url: str) -> list[Answer]:
    tier = open_tier(url)
    assert tier is not None
    found = [answer for name in tier.namespaces() for answer in tier.exact_answers(name)]
    tier.close()
    return found


def put_back(url: str, answers: list[Answer]) -> None:
    """Have the tier say what it said before."""
    tier = open_tier(url)
    assert tier is not None
    tier.put(answers)
    tier.close()


def num_common(one: list[int], other: list[int]) -> int:
    """Tokens up to the first in which two answers differ."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def other_weights(model: Path, folder: Path) -> Path:
    """Return the model as after more training: most tokens are the same."""
    shutil.copytree(model, folder)
    torch.manual_seed(1)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        weights[name] = tensor + 0.05 * tensor.float().std() * torch.randn_like(tensor)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
