"""Requests with a seed on a CPU's model runner V1: verified beside what vLLM's sampler would have
drawn token by token."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM")

from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors
from vllm.v1.sample.logits_processor.builtin import (
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from reprise.engine_ext.worker.verification import same_samples_v1
from reprise.tests.engine_ext.worker.verification_v1_batch import Batch, greedy_metadata, verify

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("vllm_kernels")]

VOCAB = 50
NUM_DRAFT = (3, 0, 5, 2, 4, 1)
SEEDED = (0, 1, 2, 4)  # 3 is greedy, 5 has no seed


def generators() -> dict[int, torch.Generator]:
    return {request: torch.Generator().manual_seed(100 + request) for request in SEEDED}


def settings(**more: Any) -> dict[str, Any]:
    temperature = torch.tensor([0.3, 0.8, 1.2, 0.0, 0.8, 1.0])
    return {
        "temperature": temperature,
        "all_greedy": False,
        "all_random": False,
        "generators": generators(),
        "output_token_ids": [[1], [2, 2], [], [3], [4], [5]],
        "prompt_token_ids": torch.arange(12).reshape(6, 2),
        "logitsprocs": processors(6, more.pop("min_p", None), more.pop("bias", None)),
        **more,
    }


def processors(
    batch: int,
    min_p: dict[int, float] | None = None,
    bias: dict[int, dict[int, float]] | None = None,
) -> LogitsProcessors:
    """vLLM's own, as they are after requests have joined the batch."""
    config: Any = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=8))
    made: list[Any] = [
        kind(config, torch.device("cpu"), False)
        for kind in (MinPLogitsProcessor, LogitBiasLogitsProcessor)
    ]
    added: list[Any] = [
        (request, _params((min_p or {}).get(request, 0.0), (bias or {}).get(request)), [], [])
        for request in range(batch)
    ]
    for processor in made:
        processor.update_state(BatchUpdate(batch, removed=[], added=added, moved=[]))
    return LogitsProcessors(made)


def _params(min_p: float, bias: dict[int, float] | None) -> SamplingParams:
    return SamplingParams(min_p=min_p, logit_bias=bias)


LIMITS: dict[str, dict[str, Any]] = {
    "temperature": {},
    "top-k": {"top_k": torch.tensor([5, 50, 3, 50, 2, 50]).int()},
    "top-p": {"top_p": torch.tensor([0.9, 1.0, 0.5, 1.0, 0.8, 1.0])},
    "both": {
        "top_k": torch.tensor([5, 50, 30, 50, 20, 50]).int(),
        "top_p": torch.tensor([0.9, 0.4, 0.5, 1.0, 0.8, 1.0]),
    },
    "penalties": {
        "no_penalties": False,
        "repetition_penalties": torch.tensor([1.3, 1.0, 1.8, 1.0, 1.1, 1.0]),
        "presence_penalties": torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0]),
    },
    "min-p": {"min_p": {0: 0.05, 2: 0.2, 5: 0.5}},
    "min-p and top-k": {
        "min_p": {0: 0.05, 2: 0.2, 4: 0.01},
        "top_k": torch.tensor([5, 50, 30, 50, 20, 50]).int(),
    },
    "bias": {"bias": {0: {3: 2.0, 7: -4.0}, 3: {5: 30.0, 6: 29.0}, 4: {1: 1.0}}},
    "bad words": {"bad_words_token_ids": {0: [[7]], 2: [[9], [11, 12]]}},
}


def one_by_one(batch: Batch, request: int) -> tuple[list[int], torch.Tensor | None]:
    """What vLLM's sampler draws for a request on its own, as long as drafts are right; and its
    generator's state after that."""
    first = sum(NUM_DRAFT[:request]) + request
    begin = sum(NUM_DRAFT[:request])
    drafts = batch.drafts.draft_token_ids[begin : begin + NUM_DRAFT[request]].tolist()
    generator = generators().get(request)
    emitted: list[int] = []
    for row in range(first, first + NUM_DRAFT[request] + 1):
        metadata = _of_one(batch.sampling, request, generator, emitted)
        logits = batch.logits[row : row + 1].clone()
        emitted.append(int(Sampler()(logits, metadata).sampled_token_ids[0, 0]))
        place = len(emitted) - 1
        if place == len(drafts) or emitted[-1] != drafts[place]:
            break
    return emitted, None if generator is None else generator.get_state()


def _of_one(
    given: SamplingMetadata, request: int, generator: torch.Generator | None, emitted: list[int]
) -> SamplingMetadata:
    def own(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values[request : request + 1]

    is_greedy = bool(given.temperature[request] == 0)
    return replace(
        given,
        temperature=None if is_greedy else own(given.temperature),
        all_greedy=is_greedy,
        all_random=not is_greedy,
        top_k=own(given.top_k),
        top_p=own(given.top_p),
        generators={} if generator is None else {0: generator},
        frequency_penalties=own(given.frequency_penalties),
        presence_penalties=own(given.presence_penalties),
        repetition_penalties=own(given.repetition_penalties),
        prompt_token_ids=own(given.prompt_token_ids),
        output_token_ids=[[*given.output_token_ids[request], *emitted]],
        bad_words_token_ids={0: given.bad_words_token_ids.get(request, [])},
        logitsprocs=_processors_of_one(given, request),
    )


def _processors_of_one(given: SamplingMetadata, request: int) -> LogitsProcessors:
    min_p, bias = sorted(given.logitsprocs.all, key=lambda each: not each.is_argmax_invariant())
    own_bias = {0: bias.biases[request]} if request in bias.biases else None
    return processors(1, {0: float(min_p.min_p_cpu[request])}, own_bias)


def make_batch(seed: int, **sampling: Any) -> Batch:
    """A batch of which many drafts are what will be sampled."""
    drafts = [[1] * count for count in NUM_DRAFT]
    batch = Batch(drafts, VOCAB, **settings(**sampling))
    batch.logits = 3 * torch.randn(
        batch.logits.shape, generator=torch.Generator().manual_seed(seed)
    )
    random = torch.Generator().manual_seed(seed)
    for request, count in enumerate(NUM_DRAFT):
        begin = sum(NUM_DRAFT[:request])
        for place in range(count):
            _tell(batch)
            emitted, _ = one_by_one(batch, request)
            right = place < len(emitted) and torch.rand((), generator=random) < 0.8
            token = emitted[place] if right else int(torch.randint(VOCAB, (), generator=random))
            batch.drafts.draft_token_ids[begin + place] = token
    _tell(batch)
    return batch


def _tell(batch: Batch) -> None:
    """Say what the drafts are where penalties look for them."""
    tokens = batch.drafts.draft_token_ids.tolist()
    ends = [sum(NUM_DRAFT[: request + 1]) for request in range(len(NUM_DRAFT))]
    batch.sampling.spec_token_ids = [
        tokens[end - count : end] for end, count in zip(ends, NUM_DRAFT, strict=True)
    ]


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_each_token_is_what_vllm_draws_one_by_one(limits: dict[str, Any], installed: Any) -> None:
    lengths = set()
    for seed in range(8):
        batch = make_batch(seed, **limits)
        expected = {request: one_by_one(batch, request) for request in (*SEEDED, 3)}
        emitted = batch.sample()
        for request, (tokens, left) in expected.items():
            assert emitted[request] == tokens, (seed, request)
            lengths.add(len(tokens))
            if left is not None:
                assert torch.equal(batch.sampling.generators[request].get_state(), left)
        assert 1 <= len(emitted[5]) <= 2
    assert {1, 2, 3, 4} <= lengths, "hardly a draft was right: the test could not fail"
    assert installed.counts.verified == 8


@pytest.mark.usefixtures("installed")
def test_logprobs_are_those_of_the_sampled_tokens() -> None:
    batch = make_batch(1, max_num_logprobs=2)
    output = batch.sampler(batch.drafts, None, batch.logits, batch.sampling)
    rows, logprobs = batch.sampler.parse_output(
        output.sampled_token_ids, VOCAB, logprobs_tensors=output.logprobs_tensors
    )
    assert logprobs is not None
    emitted = [token for row in rows for token in row]
    assert logprobs.logprob_token_ids[:, 0].tolist() == emitted
    first = [sum(NUM_DRAFT[:request]) + request for request in range(len(NUM_DRAFT))]
    places = [first[request] + i for request, row in enumerate(rows) for i in range(len(row))]
    expected = batch.logits.log_softmax(dim=-1)[places, emitted]
    assert torch.allclose(torch.as_tensor(logprobs.logprobs[:, 0]), expected, atol=1e-5)


@pytest.mark.parametrize("fault", ["sampler", "switched off", "wide noise", "vLLM changed"])
def test_what_cannot_be_verified_is_sampled_without_drafts(
    installed: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    batch = make_batch(2)
    expected = {request: one_by_one(batch, request)[0][:1] for request in (*SEEDED, 3)}
    draws = generators()
    for generator in draws.values():
        same_samples_v1.draw(generator)
    if fault == "sampler":
        monkeypatch.setattr(same_samples_v1, "_emitted", None)  # fails after all is drawn
    elif fault == "switched off":
        installed.active = False
    elif fault == "vLLM changed":
        installed.keeps_samples = False
    else:
        batch.sampler.use_fp64_gumbel = True
    emitted = batch.sample()
    assert {request: emitted[request] for request in expected} == expected
    assert [len(row) for row in emitted] == [1] * len(NUM_DRAFT)
    for request, generator in draws.items():
        left = batch.sampling.generators[request].get_state()
        assert torch.equal(left, generator.get_state())
    assert sum(installed.counts.fallen_through.values()) == 1


def test_seeds_keep_their_samples_only_where_vllm_draws_as_expected(
    monkeypatch: pytest.MonkeyPatch, installed: Any
) -> None:
    assert installed.keeps_samples_now
    assert same_samples_v1.sampler_draws_so()
    monkeypatch.setattr(
        same_samples_v1, "draw", lambda generator: torch.rand(3, generator=generator)
    )
    assert not same_samples_v1.sampler_draws_so()
    assert not verify(enabled=True).keeps_samples_now
    assert not verify(enabled=False).keeps_samples_now


def test_a_batch_whose_seeds_have_no_drafts_is_none_of_its_business() -> None:
    batch = Batch([[1], []], generators={1: torch.Generator()})
    assert not same_samples_v1.must_verify(batch.drafts, batch.sampling)
    assert not greedy_metadata(1).generators
    for limits in ({"min_p": {1: 0.3}}, {"bias": {1: {3: 2.0}}}):
        batch = Batch([[1], []], logitsprocs=processors(2, **limits))
        assert not same_samples_v1.must_verify(batch.drafts, batch.sampling)
        batch = Batch([[], [1]], logitsprocs=processors(2, **limits))
        assert same_samples_v1.must_verify(batch.drafts, batch.sampling)
