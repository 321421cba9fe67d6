"""Stored answers that nothing vouches for: on real engines, of equal and of other weights."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.sampling_params import RequestOutputKind, SamplingParams

from reprise.engine_ext.async_llm import EnhancedAsyncLLM
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.retrieval.api.answer import Answer, token_bytes
from reprise.retrieval.in_process.open_tier import open_tier

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

FINAL, DELTA = RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA
QUESTIONS = list(dict.fromkeys(row.prompt for row in make_demo_trace()))[:4]


class Asked:
    """An engine, and what it says."""

    def __init__(self, model: Path, url: str) -> None:
        self.engine = EnhancedAsyncLLM(
            model=str(model),
            served_model_name="demo",
            dtype="float32",
            enforce_eager=True,
            max_num_seqs=4,
            max_model_len=512,
            kv_cache_memory_bytes=1 << 28,
            additional_config={
                "reprise": {
                    "retrieval": {"url": url, "embedding_model": "lexical"},
                    "serving": {"exact_budget_s": 1.0},
                }
            },
        )
        self._count = 0

    @property
    def front_end(self) -> Any:
        return self.engine.front_end

    def counts(self, *names: str) -> tuple[int, ...]:
        return tuple(self.front_end.counts[name] for name in names)

    async def ask(
        self, prompt: str, *, kind: RequestOutputKind = FINAL, salt: str = "", **params: Any
    ) -> tuple[list[int], str, str | None, Any]:
        """Token ids, text, how it ended."""
        self._count += 1
        settings = SamplingParams(
            output_kind=kind, **{"temperature": 0.0, "max_tokens": 60, **params}
        )
        given: Any = {"prompt": prompt, **({"cache_salt": salt} if salt else {})}
        tokens: list[int] = []
        text, last = "", None
        async for last in self.engine.generate(given, settings, f"r{self._count}"):
            tokens += last.outputs[0].token_ids
            text += last.outputs[0].text
        assert last is not None
        self.last = last
        return tokens, text, last.outputs[0].finish_reason, last.outputs[0].stop_reason

    async def from_nothing(self, prompt: str, **params: Any) -> Any:
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


async def whole_answers(asked: Asked) -> None:
    for question in QUESTIONS:
        expected = await asked.from_nothing(question)
        assert await asked.ask(question) == expected
    await asked.written()
    assert asked.counts("checked", "exact") == (0, 0)
    for kind in (FINAL, DELTA):
        for question in QUESTIONS:
            expected = await asked.from_nothing(question)
            assert await asked.ask(question, kind=kind) == expected
            assert asked.last.num_cached_tokens is not None
        await asked.written()
    num = 2 * len(QUESTIONS)
    assert asked.counts("checked", "verified", "exact") == (num, num, 0)


async def other_limits(asked: Asked) -> None:
    for max_tokens in (7, 1, 30, 90):
        expected = await asked.from_nothing(QUESTIONS[0], max_tokens=max_tokens)
        assert await asked.ask(QUESTIONS[0], max_tokens=max_tokens) == expected
        await asked.written()


async def stop_strings(asked: Asked) -> None:
    text = (await asked.from_nothing(QUESTIONS[1]))[1]
    params: dict[str, Any] = {"stop": [text[20:26]], "include_stop_str_in_output": True}
    expected = await asked.from_nothing(QUESTIONS[1], **params)
    assert expected[2:] == ("stop", text[20:26])
    for kind in (FINAL, DELTA):
        assert await asked.ask(QUESTIONS[1], kind=kind, **params) == expected
        await asked.written()


async def whatever_is_stored(asked: Asked, url: str) -> None:
    """Its first tokens are right, and then it is wrong: at any place, in any way."""
    expected = {question: await asked.from_nothing(question) for question in QUESTIONS}

    def at(place: int) -> Callable[[list[int]], list[int]]:
        return lambda ids: [*ids[:place], (ids[place] + 1) % 200 + 3, *ids[place + 1 :]]

    for changed in (
        at(0), at(1), at(5), at(-1),
        lambda ids: ids[:4],
        lambda ids: [*ids, *ids],
        lambda ids: ids[3:],
        lambda _: [1 << 30] * 9,
    ):  # fmt: skip
        await asked.written()
        change(url, changed)
        for question in QUESTIONS:
            for kind in (FINAL, DELTA):
                assert await asked.ask(question, kind=kind) == expected[question]
                asked.front_end.exact.memory.clear()
    assert asked.front_end.errors.counts() == {}


async def tenants(asked: Asked) -> None:
    expected = await asked.from_nothing(QUESTIONS[2], salt="a")
    await asked.ask(QUESTIONS[2], salt="a")
    await asked.written()
    before = asked.counts("checked")
    assert await asked.ask(QUESTIONS[2], salt="b") == expected
    assert asked.counts("checked") == before
    assert await asked.ask(QUESTIONS[2], salt="a") == expected
    assert asked.counts("checked") == (before[0] + 1,)
    await asked.written()


async def only_plain_greedy_requests(asked: Asked) -> None:
    """All others are neither looked for nor written."""
    for params in (
        {"seed": 5, "temperature": 0.9},
        {"repetition_penalty": 1.2},
        {"min_tokens": 4},
        {"logit_bias": {7: 1.0}},
        {"allowed_token_ids": [5, 6, 7]},
    ):
        shared = asked.front_end.exact.shared
        before = dict(shared.outcomes)
        first = await asked.ask("an odd one", **params)
        await asked.written()
        assert await asked.ask("an odd one", **params) == first
        assert dict(shared.outcomes) == before


async def followers(asked: Asked) -> None:
    """Two at once: one check, one generation."""
    expected = await asked.from_nothing(QUESTIONS[3])
    await asked.written()
    before = asked.counts("checked", "followed")
    both = await asyncio.gather(*(asked.ask(QUESTIONS[3], kind=DELTA) for _ in range(2)))
    assert both == [expected, expected]
    checked, followed = asked.counts("checked", "followed")
    assert checked == before[0] + 1
    assert followed == before[1] + 1
    await asked.written()


async def clients_that_leave(asked: Asked) -> None:
    """At whatever moment: while it is looked up, checked, gone on with."""
    expected = await asked.from_nothing(QUESTIONS[3], max_tokens=90)
    for delay_s in (0.0, 0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15):
        await asked.written()
        task = asyncio.create_task(asked.ask(QUESTIONS[3], kind=DELTA, max_tokens=90))
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.5)
    replays = asked.front_end.others.verified._replays
    assert (len(replays), len(asked.front_end.flights)) == (0, 0)
    assert [*replays._waiting, *replays._going_on, *replays._check_of] == []
    assert asked.engine.get_num_unfinished_requests() == 0
    assert await asked.ask(QUESTIONS[3], max_tokens=90) == expected


async def what_is_reported(asked: Asked) -> None:
    await asked.written()
    wants = {"extra_args": {"reprise_info": True}}
    tokens = (await asked.ask(QUESTIONS[0], **wants))[0]
    assert asked.last.reprise_info.cache == ("verified",)
    assert len(asked.last.prompt_token_ids) + len(tokens) < 512
    await asked.engine.report()
    stats = (await asked.engine.get_stats())["front_end"]
    assert stats["shared"]["unproven"] > 0
    assert stats["counts"]["tokens_verified"] > stats["counts"]["verified"] > 0


async def test_answers_are_those_of_the_engine_whatever_is_stored(
    demo_model: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/answers.sqlite"
    asked = Asked(demo_model, url)
    try:
        await whole_answers(asked)
        await other_limits(asked)
        await stop_strings(asked)
        await tenants(asked)
        await only_plain_greedy_requests(asked)
        await followers(asked)
        await clients_that_leave(asked)
        await what_is_reported(asked)
        await whatever_is_stored(asked, url)
        expected = {q: await asked.from_nothing(q) for q in QUESTIONS}
    finally:
        asked.engine.shutdown()
    assert stored(url)
    other = Asked(_other_weights(demo_model, tmp_path / "other"), url)
    try:
        differing = 0
        for question in QUESTIONS:
            own = await other.from_nothing(question)
            differing += own != expected[question]
            assert await other.ask(question, kind=DELTA) == own
        assert differing > 0
        assert other.counts("checked") == (len(QUESTIONS),)
        assert other.front_end.errors.counts() == {}
    finally:
        other.engine.shutdown()


def _other_weights(model: Path, folder: Path) -> Path:
    """The model as after more training: most tokens are the same."""
    shutil.copytree(model, folder)
    torch.manual_seed(1)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        weights[name] = tensor + 0.05 * tensor.float().std() * torch.randn_like(tensor)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
