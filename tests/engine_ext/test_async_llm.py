"""Where EnhancedAsyncLLM takes AsyncLLM's place, where it does not, and how it stands in it."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from reprise.engine_ext import async_llm, http_front_door, vllm_expectations
from reprise.engine_ext.async_llm import (
    EnhancedAsyncLLM,
    create_enhanced_system,
    install,
)
from reprise.engine_ext.plugin import PROPOSER_PATH
from reprise.engine_ext.vllm_expectations import unexpected_in_vllm


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before `install`; what it does is undone."""
    for name in ("from_vllm_config", "from_engine_args"):
        built = AsyncLLM.__dict__[name].__func__
        original = getattr(built, "__wrapped__", built)
        monkeypatch.setattr(AsyncLLM, name, classmethod(original))
    monkeypatch.setattr(AsyncLLM, "_reprise_installed", False, raising=False)


def fake_config(model: str | None) -> Any:
    speculative = SimpleNamespace(model=model) if model is not None else None
    return SimpleNamespace(speculative_config=speculative)


@pytest.mark.usefixtures("not_installed")
def test_only_our_proposer_changes_what_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(cls: type, vllm_config: Any, **_kwargs: Any) -> Any:
        return cls, vllm_config

    monkeypatch.setattr(AsyncLLM, "from_vllm_config", classmethod(build))
    assert install()
    ours, others = fake_config(PROPOSER_PATH), fake_config("some.other.Proposer")
    assert AsyncLLM.from_vllm_config(vllm_config=ours) == (EnhancedAsyncLLM, ours)
    assert AsyncLLM.from_vllm_config(others) == (AsyncLLM, others)
    assert AsyncLLM.from_vllm_config(fake_config(None))[0] is AsyncLLM

    class Derived(AsyncLLM):
        pass

    assert Derived.from_vllm_config(ours)[0] is Derived


@pytest.mark.usefixtures("not_installed")
def test_another_vllm_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_expectations, "vllm_version", "0.99.0")
    before = AsyncLLM.__dict__["from_vllm_config"]
    assert not install()
    assert AsyncLLM.__dict__["from_vllm_config"] is before


@pytest.mark.usefixtures("not_installed")
def test_a_changed_signature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unexpected_in_vllm() is None

    async def add_request(self: Any, other: Any) -> None: ...

    monkeypatch.setattr(AsyncLLM, "add_request", add_request)
    assert "AsyncLLM.add_request('self', 'other')" in (unexpected_in_vllm() or "")
    assert not install()


@pytest.mark.usefixtures("not_installed")
def test_the_rust_front_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    monkeypatch.setattr(async_llm.sys, "argv", ["serve", f'{{"model": "{PROPOSER_PATH}"}}'])
    with pytest.raises(SystemExit, match="unset it"):
        install()
    monkeypatch.setattr(async_llm.sys, "argv", ["serve"])
    assert install()


def test_the_middleware_goes_in_by_vllms_own_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_app(args: Any, *_others: Any) -> list[str]:
        return list(args.middleware)

    build_app.__module__ = "vllm.entrypoints.launchers.app"
    entry = SimpleNamespace(build_app=build_app)
    monkeypatch.setitem(http_front_door.sys.modules, http_front_door._ENTRY, entry)
    assert http_front_door.install()
    assert http_front_door.install()
    args = SimpleNamespace(middleware=["theirs"])
    assert entry.build_app(args, ("generate",)) == ["theirs", http_front_door.MIDDLEWARE]
    assert entry.build_app(args, ("generate",)) == ["theirs", http_front_door.MIDDLEWARE]


async def generate(
    engine: AsyncLLM, prompt: Any, request_id: str, kind: RequestOutputKind, **params: Any
) -> tuple[str, list[int], str | None, int]:
    """Text, token ids, finish reason, and the number of outputs that they came in."""
    settings = SamplingParams(
        output_kind=kind, **{"temperature": 0, "max_tokens": 60, "ignore_eos": True, **params}
    )
    text, token_ids, count, reason = "", [], 0, None
    async for output in engine.generate(prompt, settings, request_id):
        assert output.request_id == request_id
        completion = output.outputs[0]
        is_delta = kind is RequestOutputKind.DELTA
        text = text + completion.text if is_delta else completion.text
        new = list(completion.token_ids)
        token_ids = token_ids + new if is_delta else new
        reason = completion.finish_reason
        count += 1
    return text, token_ids, reason, count


async def it_is_an_async_llm(engine: EnhancedAsyncLLM) -> None:
    assert isinstance(engine, AsyncLLM)
    assert (await engine.health_check())["state"] == "ready"
    assert await engine.is_tracing_enabled() is False


async def a_repeat_has_the_shape_that_was_asked_for(engine: EnhancedAsyncLLM) -> None:
    first = await generate(engine, "How do I", "first", RequestOutputKind.DELTA)
    assert len(first[1]) == 60
    for kind in RequestOutputKind:
        again = await generate(engine, "How do I", f"again-{kind.name}", kind)
        assert again[:3] == first[:3]
        assert (again[3] == 1) == (kind is RequestOutputKind.FINAL_ONLY)
    counts = (await engine.get_stats())["front_end"]["counts"]
    assert (counts["exact"], counts["miss"], counts["stored"]) == (3, 1, 1)


async def salts_are_walls(engine: EnhancedAsyncLLM) -> None:
    for salt in ("a", "b"):
        prompt = {"prompt": "behind a wall", "cache_salt": salt}
        await generate(engine, prompt, f"salt-{salt}", RequestOutputKind.FINAL_ONLY)
    namespaces = engine.front_end.memory.namespaces()  # type: ignore[union-attr]
    assert namespaces["a"] == namespaces["b"] == 1


async def nonsense_is_refused_before_the_engine(engine: EnhancedAsyncLLM) -> None:
    with pytest.raises(VLLMValidationError, match="reprise_cache"):
        await generate(
            engine,
            "x",
            "nonsense",
            RequestOutputKind.FINAL_ONLY,
            extra_args={"reprise_cache": "perhaps"},
        )


async def a_client_that_leaves_leaves_nothing_behind(engine: EnhancedAsyncLLM) -> None:
    async def leave() -> None:
        settings = SamplingParams(
            temperature=0, max_tokens=400, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        async for _ in engine.generate("left alone", settings, "leaves"):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await leave()
    await asyncio.sleep(0.2)
    assert engine.get_num_unfinished_requests() == 0
    assert len(engine.front_end.flights) == 0  # type: ignore[union-attr]


async def other_weights_end_what_was_kept(engine: EnhancedAsyncLLM) -> None:
    await generate(engine, "weights", "before", RequestOutputKind.FINAL_ONLY)
    await engine.update_weight_version("next")
    assert engine.front_end.memory.stats().answers == 0  # type: ignore[union-attr]
    await generate(engine, "weights", "after", RequestOutputKind.FINAL_ONLY)
    await generate(engine, "weights", "again", RequestOutputKind.FINAL_ONLY)
    assert engine.front_end.memory.stats().answers == 1  # type: ignore[union-attr]


async def metrics_follow_the_workers(engine: EnhancedAsyncLLM) -> None:
    await engine.report()
    (worker,) = (await engine.get_stats())["workers"]
    assert worker["provider"]["steps"] > 0
    assert (await engine.health_check())["errors"] == {}


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_on_a_real_engine(demo_model: Path) -> None:
    """The engine client without a server around it; one engine for all of the above."""
    args = AsyncEngineArgs(
        model=str(demo_model), enforce_eager=True, max_num_seqs=8, max_model_len=512
    )
    before = asyncio.all_tasks()
    async with create_enhanced_system(args) as engine:
        await it_is_an_async_llm(engine)
        await a_repeat_has_the_shape_that_was_asked_for(engine)
        await salts_are_walls(engine)
        await nonsense_is_refused_before_the_engine(engine)
        await a_client_that_leaves_leaves_nothing_behind(engine)
        await other_weights_end_what_was_kept(engine)
        await metrics_follow_the_workers(engine)
    await asyncio.sleep(0.2)
    assert asyncio.all_tasks() == before
