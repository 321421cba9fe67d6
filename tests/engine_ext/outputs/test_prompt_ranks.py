"""Tokens of a prompt are ranked as vLLM does, and no verified answer waits for a compiler."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from torch._dynamo.utils import counters
from vllm.v1.sample.ops import logprobs
from vllm.v1.sample.sampler import Sampler

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.request.verifiable import may_verify
from reprise.engine_ext.worker import prompt_ranks
from reprise.engine_ext.worker.prompt_ranks import batched_count_greater_than, compile_at_start
from reprise.eval.demo_data.demo_trace import make_demo_trace

EXTENSION = "reprise.tests.engine_ext.outputs.compiled_graphs.CompiledGraphs"
# Of no model here, so that nothing is compiled for it yet.
SIZE = 521


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(prompt_ranks, "_compiled_for", set())
    yield
    for thread in threading.enumerate():
        if thread.name == "reprise-compile":
            thread.join(60)


def scores(num_rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs with ties and without bounds, and those of some tokens."""
    made = torch.randn(num_rows, size).round(decimals=1)
    made[:, ::7] = float("-inf")
    return made, made.gather(-1, torch.randint(0, size, (num_rows, 1)))


@pytest.mark.parametrize("size", [1, SIZE, 50257, 151936, (1 << 18) + 1])
@pytest.mark.parametrize("num_rows", [1, 2, 13])
def test_ranks_without_a_compiler(num_rows: int, size: int) -> None:
    torch.manual_seed(num_rows)
    x, values = scores(num_rows, size)
    expected = [(row >= value).sum().item() for row, value in zip(x, values, strict=True)]
    found = batched_count_greater_than(x, values)
    assert (found.dtype, found.tolist()) == (torch.int64, expected)


def test_a_slow_compiler_does_not_hold_up_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    def compile_slowly(x: torch.Tensor, _values: torch.Tensor) -> torch.Tensor:
        assert may_end.wait(60)
        return torch.full((len(x),), -1)

    monkeypatch.setattr(logprobs, "batched_count_greater_than", compile_slowly)
    monkeypatch.setattr(prompt_ranks, "MAX_SECONDS", 0.01)
    x, values = scores(3, SIZE)
    compile_at_start(SIZE)
    assert batched_count_greater_than(x, values).min() >= 0  # while it still compiles
    may_end.set()
    deadline_s = time.monotonic() + 60
    while not prompt_ranks._compiled_for and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert batched_count_greater_than(x, values).tolist() == [-1, -1, -1]
    wider, others = scores(3, SIZE + 1)  # nothing is made for another model's in a step
    assert batched_count_greater_than(wider, others).min() >= 0


def test_without_a_compiler_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no compiler\nand a lot more")

    monkeypatch.setattr(logprobs, "batched_count_greater_than", fail)
    monkeypatch.setattr(prompt_ranks, "MAX_SECONDS", 60.0)
    compile_at_start(SIZE)
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "cannot be compiled (no compiler);" in line]) == 1
    x, values = scores(2, SIZE)
    assert torch.equal(batched_count_greater_than(x, values), (x >= values).sum(-1))


def test_only_where_answers_may_be_verified() -> None:
    engine = SimpleNamespace(
        model_config=SimpleNamespace(),
        cache_config=SimpleNamespace(),
        kv_transfer_config=None,
        ec_transfer_config=None,
    )

    def may(url: str = "sqlite:///a", **serving: Any) -> bool:
        return may_verify(engine, load_config({"retrieval": {"url": url}, "serving": serving}))

    assert may()
    assert may(exact_hits_from_others="trusted")  # those of another fingerprint
    assert not may(exact_hits_from_others="off")
    assert not may(exact_hits="off")
    assert not may(enabled=False)
    assert not may("memory://")
    engine.model_config.is_multimodal_model = True
    assert not may()


@pytest.mark.slow
def test_what_is_compiled_at_the_start_is_what_a_step_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For any number of rows, through vLLM's sampler."""
    monkeypatch.setattr(prompt_ranks, "MAX_SECONDS", 300.0)

    def gather(num_rows: int) -> None:
        with torch.inference_mode():
            found = Sampler.compute_logprobs(torch.randn(num_rows, SIZE))
            ids = torch.randint(0, SIZE, (num_rows,))
            ranks = Sampler.gather_logprobs(found, 2, ids).selected_token_ranks
            own = found.gather(-1, ids.unsqueeze(-1))
            assert torch.equal(ranks, (found >= own).sum(-1))

    def num_compiled() -> int:
        return int(counters["stats"]["unique_graphs"])

    torch._dynamo.reset()
    before = num_compiled()
    compile_at_start(SIZE)
    assert num_compiled() == before + 1
    for num_rows in (1, 2, 37, 300):
        gather(num_rows)
    assert num_compiled() == before + 1
    torch._dynamo.reset()  # as without: the first one compiles
    gather(37)
    assert num_compiled() == before + 2


class VerifiedOnce:
    """An engine that verifies its own answers, and what it has compiled for that."""

    def __init__(self, model: Path, folder: Path) -> None:
        from reprise.tests.engine_ext.frontend.asked_engine import Asked

        url = f"sqlite:///{folder}/answers.sqlite"
        self.asked = Asked(model, url, worker_extension_cls=EXTENSION)

    async def worker(self, method: str) -> Any:
        (found,) = await self.asked.engine.collective_rpc(method)
        return found

    async def is_ready(self) -> None:
        """Wait for what is made at the start, which takes its time on a machine under load."""
        deadline_s = time.monotonic() + 120
        while not await self.worker("ranks_compiled_for"):
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.2)

    async def compiles(self, question: str) -> int:
        """Return how many graphs the first verified answer to a question has compiled."""
        expected = await self.asked.ask(question)
        await self.asked.written()
        before, checked = await self.worker("num_compiled"), self.asked.counts("verified")[0]
        assert await self.asked.ask(question) == expected
        assert self.asked.counts("verified") == (checked + 1,)
        await self.asked.written()
        return int(await self.worker("num_compiled")) - before

    async def errors(self) -> list[Any]:
        stats = await self.asked.engine.collective_rpc("reprise_stats")
        return [self.asked.front_end.errors.counts(), *(each["errors"] for each in stats)]


QUESTIONS = list(dict.fromkeys(row.prompt for row in make_demo_trace()))[:3]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_first_verified_answer_compiles_nothing(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHT_PROCESSES_SPAWN", "1")  # what is forked has it made already
    one = VerifiedOnce(demo_model, tmp_path)
    try:
        await one.is_ready()
        assert await one.compiles(QUESTIONS[0]) == 0
        # As without: nothing of what was made at the start is left.
        await one.worker("forget_compiled")
        assert await one.compiles(QUESTIONS[1]) == 1
        assert await one.errors() == [{}, {}]
    finally:
        one.asked.engine.shutdown()


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_without_a_compiler_answers_are_verified_all_the_same(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own function would end the engine."""
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("LIGHT_PROCESSES_SPAWN", "1")  # nobody has looked for a compiler yet
    one = VerifiedOnce(demo_model, tmp_path)
    try:
        for question in QUESTIONS[:2]:
            assert await one.compiles(question) == 0
        assert await one.worker("ranks_compiled_for") == []
        assert await one.errors() == [{}, {}]
    finally:
        one.asked.engine.shutdown()
