"""Steps of a worker on model runner V2: what the host does in them, with tensors of the CPU.

On a GPU this comes before each launch, in the thread that launches steps.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from vllm import SamplingParams

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.speculator import device_requests
from reprise.engine_ext.speculator.device_requests import DeviceRequests
from reprise.engine_ext.speculator.slot_counts import SlotCounts
from reprise.kernels.draft.constants import NEAR_LENGTH
from reprise.kernels.draft.state import DraftState
from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.spec.api.config import DraftConfig

NAMESPACE = "bench"
TOPICS, NEAR = 8, 8
"""As many answers of each topic are near to a prompt of it."""
PROMPT_TOKENS, SHARED_TOKENS, ANSWER_TOKENS = 300, 200, 200
NUM_SLOTS, MAX_MODEL_LEN = 32, 1024
ROUNDS = 300
OTHER_THREADS_S = 0.003
"""They are through with a request that has ended, and hold the interpreter no longer."""


class Retrieval:
    """Has answers that are near by their tokens, and is still searching for what is near in
    meaning."""

    def __init__(self) -> None:
        self._updates = make_updates()

    def updates(self) -> list[AnswerUpdate]:
        updates, self._updates = self._updates, []
        return updates

    def submit(self, request_id: str, **_: Any) -> None:
        pass

    def poll(self, _: str) -> list[NearAnswer] | None:
        return None

    def progress(self) -> int:
        return 0

    def discard(self, request_id: str) -> None:
        pass

    def record_usage(self, namespace: str, accepted_tokens: Mapping[str, int]) -> None:
        pass

    def flush(self, _: float) -> bool:
        return True


def make_prompt(topic: int, number: int) -> list[int]:
    """Tokens that all prompts share, then some of the topic and some of its own."""
    draw = np.random.default_rng((topic, number))
    own = draw.integers(1000, 50_000, PROMPT_TOKENS - SHARED_TOKENS)
    of_topic = np.random.default_rng(topic).integers(1000, 50_000, len(own))
    tokens = np.where(draw.random(len(own)) < 0.5, of_topic, own)
    return [*range(100, 100 + SHARED_TOKENS), *tokens.tolist()]


def make_updates() -> list[AnswerUpdate]:
    """Answers that join, NEAR of each topic."""
    draw = np.random.default_rng(0)
    return [
        AnswerUpdate(
            answer_id=f"{topic:016x}{number:016x}",
            namespace=NAMESPACE,
            added=True,
            prompt_tokens=np.array(make_prompt(topic, number), "<i4").tobytes(),
            response_tokens=draw.integers(1000, 3000, ANSWER_TOKENS).astype("<i4").tobytes(),
        )
        for topic in range(TOPICS)
        for number in range(NEAR)
    ]


class Worker:
    """Requests of a worker, and as much of vLLM's own state as their steps read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device_requests, "worker_retriever", lambda *_: Retrieval())
        model = SimpleNamespace(
            model="", revision=None, quantization=None, dtype="", tokenizer="",
            tokenizer_revision=None, tokenizer_mode="auto", get_vocab_size=lambda: 50_000,
        )  # fmt: skip
        vllm_config: Any = SimpleNamespace(model_config=model)
        config = RepriseConfig(drafts=DraftConfig(max_near_answers=NEAR))
        self.state = DraftState.create(num_slots=NUM_SLOTS, max_draft=16, max_near_tokens=8192)
        self._errors = ErrorCounter()
        self._requests = DeviceRequests(
            vllm_config, config, self.state, SlotCounts(self.state), errors=self._errors
        )
        shape = (NUM_SLOTS, PROMPT_TOKENS + ANSWER_TOKENS)
        self._slots: dict[str, int] = {}
        self._req_states = SimpleNamespace(
            req_id_to_index=self._slots,
            total_len=SimpleNamespace(gpu=torch.full(shape[:1], PROMPT_TOKENS, dtype=torch.int32)),
            all_token_ids=SimpleNamespace(gpu=torch.zeros(shape, dtype=torch.int32)),
        )
        hints = RequestHints(namespace=NAMESPACE)
        self._params = with_hints(SamplingParams(max_tokens=ANSWER_TOKENS), hints)
        self._num_begun = 0
        assert self._requests.flush(60)

    def begin(self) -> None:
        """Make the step ready in which a request begins."""
        self._num_begun += 1
        self._slots[str(self._num_begun)] = len(self._slots)
        prompt = make_prompt(self._num_begun % TOPICS, NEAR + self._num_begun)
        data = SimpleNamespace(
            req_id=str(self._num_begun), prompt_token_ids=prompt, prefill_token_ids=prompt,
            sampling_params=self._params, prompt_len=len(prompt), num_computed_tokens=0,
        )  # fmt: skip
        self._make_step(new=[data])

    def go_on(self) -> None:
        """Make a step ready in which none begins and none ends."""
        self._make_step()

    def end(self) -> None:
        """Make the step ready in which the latest request ends."""
        request_id, _ = self._slots.popitem()
        self._make_step(ended={request_id})

    def _make_step(self, *, new: Sequence[Any] = (), ended: Collection[str] = ()) -> None:
        num_scheduled = dict.fromkeys(self._slots, 1)
        self._step: Any = SimpleNamespace(
            finished_req_ids=ended, preempted_req_ids=None, scheduled_new_reqs=new,
            num_scheduled_tokens=num_scheduled | {one.req_id: one.prompt_len for one in new},
        )  # fmt: skip

    def run(self) -> None:
        """Do what the host does in the step."""
        self._requests.end(self._req_states, self._step)
        self._requests.begin_step(self._req_states, self._step)

    def check(self) -> None:
        """Demand that what is live has its near answers, and that nothing has failed."""
        assert self._requests.report()["live_requests"] == len(self._slots)
        lengths = self.state.slots[: len(self._slots), NEAR_LENGTH]
        assert (lengths == NEAR * (ANSWER_TOKENS + 2)).all()
        assert self._errors.counts() == {}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(monkeypatch)


def bench_begin(benchmark: BenchmarkFixture, worker: Worker) -> None:
    def end() -> None:
        worker.check()
        worker.end()
        worker.run()
        time.sleep(OTHER_THREADS_S)

    benchmark.pedantic(worker.run, setup=worker.begin, teardown=end, rounds=ROUNDS)


def bench_end(benchmark: BenchmarkFixture, worker: Worker) -> None:
    def begin() -> None:
        time.sleep(OTHER_THREADS_S)
        worker.begin()
        worker.run()
        worker.end()

    benchmark.pedantic(worker.run, setup=begin, teardown=worker.check, rounds=ROUNDS)


def bench_go_on(benchmark: BenchmarkFixture, worker: Worker) -> None:
    for _ in range(NUM_SLOTS):
        worker.begin()
        worker.run()
    worker.go_on()
    benchmark(worker.run)
    worker.check()
