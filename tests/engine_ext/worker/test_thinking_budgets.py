"""Thinking budgets on model runner V1: requests that have one are answered beside drafted ones as
an engine without speculation answers them."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM")

from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.sampler import Sampler
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from reprise.engine_ext.worker.thinking_budgets import UndraftedBudgets, keep_undrafted
from reprise.engine_ext.worker.verification import same_samples_v1
from reprise.tests.engine_ext.worker.verification_v1_batch import Batch, greedy_metadata, verify

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("vllm_kernels")]

VOCAB = 12
OPEN = 1
CPU = torch.device("cpu")
PROMPT = [5, OPEN, 6]
BUDGETS = {1: 3, 3: 0, 4: 5}
"""Of five requests, two have none, and may have drafts."""


def reasoning(end: list[int]) -> Any:
    return SimpleNamespace(reasoning_start_token_ids=[OPEN], reasoning_end_token_ids=end)


def join(holder: Any, prompts: list[list[int]], outputs: list[list[int]]) -> Any:
    """A holder, once these requests have joined the batch."""
    added: list[Any] = [
        (row, SamplingParams(thinking_token_budget=BUDGETS.get(row)), prompts[row], outputs[row])
        for row in range(len(prompts))
    ]
    holder.sync_batch(BatchUpdate(len(prompts), removed=[], added=added, moved=[]))
    return holder


def logits_of(row: int, output: list[int], seed: int) -> torch.Tensor:
    """[vocab], of the token that follows; now and then thinking begins."""
    generator = torch.Generator().manual_seed(hash((row, *output, seed)) % 2**31)
    logits = torch.randn(VOCAB, generator=generator)
    logits[OPEN] += 1.0
    return logits


def plainly(prompts: list[list[int]], end: list[int], steps: int, seed: int) -> list[list[int]]:
    """What vLLM answers without speculation, token by token."""
    outputs: list[list[int]] = [[] for _ in prompts]
    holder = ThinkingBudgetStateHolder(reasoning(end), len(prompts), 0, CPU, False)
    metadata = replace(
        greedy_metadata(len(prompts)),
        output_token_ids=outputs,
        thinking_budget_state_holder=join(holder, prompts, outputs),
    )
    for _ in range(steps):
        logits = torch.stack([logits_of(row, out, seed) for row, out in enumerate(outputs)])
        sampled = Sampler()(logits, metadata).sampled_token_ids[:, 0].tolist()
        for output, token in zip(outputs, sampled, strict=True):
            output.append(token)
    return outputs


@pytest.mark.parametrize("drops_drafts", [False, True])
@pytest.mark.parametrize("end", [[9], [8, 9], [OPEN, 8, 8]])
def test_they_end_thinking_where_an_engine_without_drafts_does(
    end: list[int], drops_drafts: bool
) -> None:
    verify()
    forced = 0
    for seed in range(30):
        rng = random.Random(seed)
        prompts = [rng.choice([PROMPT, [5, 6]]) for _ in range(5)]
        expected = plainly(prompts, end, 60, seed)
        forced += sum(expected[row].count(end[-1]) for row in BUDGETS)
        outputs: list[list[int]] = [[] for _ in prompts]
        holder = join(UndraftedBudgets(reasoning(end), 5, CPU), prompts, outputs)
        for _ in range(30):
            drafts = [
                _draft(rng, expected[row][len(out) :], row) for row, out in enumerate(outputs)
            ]
            batch = Batch(
                drafts,
                VOCAB,
                output_token_ids=outputs,
                spec_token_ids=drafts,
                thinking_budget_state_holder=holder,
            )
            rows = [
                logits_of(row, [*out, *draft[:place]], seed)
                for row, (out, draft) in enumerate(zip(outputs, drafts, strict=True))
                for place in range(len(draft) + 1)
            ]
            batch.logits = torch.stack(rows)
            for output, tokens in zip(outputs, _sample(batch, drops_drafts), strict=True):
                output += tokens
            assert outputs == [
                answer[: len(output)] for answer, output in zip(expected, outputs, strict=True)
            ], seed
    assert forced > 100


def _draft(rng: random.Random, right: list[int], row: int) -> list[int]:
    """Up to three tokens, half of them right, or often none, for requests without a budget."""
    if row in BUDGETS or rng.random() < 0.5:
        return []
    return [token if rng.random() < 0.5 else rng.randrange(VOCAB) for token in right[:3]]


def _sample(batch: Batch, drops_drafts: bool) -> list[list[int]]:
    if not drops_drafts:
        return batch.sample()
    given = batch.sampler.sampler, batch.drafts, batch.logits, batch.sampling
    output = same_samples_v1.without_drafts(*given)
    return output.sampled_token_ids.tolist()


def test_an_engines_own_holder_is_replaced_once_and_only_where_it_has_one() -> None:
    holder = ThinkingBudgetStateHolder(reasoning([9]), 4, 16, CPU, False)
    batch = SimpleNamespace(thinking_budget_state_holder=holder, max_num_reqs=4, device=CPU)
    runner = SimpleNamespace(
        input_batch=batch, vllm_config=SimpleNamespace(reasoning_config=reasoning([9]))
    )
    keep_undrafted(runner)
    kept: Any = batch.thinking_budget_state_holder
    assert type(kept) is UndraftedBudgets
    assert kept.think_end_token_ids == [9]
    keep_undrafted(runner)
    assert batch.thinking_budget_state_holder is kept
    for without in (SimpleNamespace(thinking_budget_state_holder=None), SimpleNamespace()):
        before = vars(without).copy()
        keep_undrafted(SimpleNamespace(input_batch=without))
        assert vars(without) == before
