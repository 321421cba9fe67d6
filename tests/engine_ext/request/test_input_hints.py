"""Requests that no front end of ours has seen: `vllm.LLM`, and engine clients of nobody knows
whom. On a real engine, whose input processor is made to look like the one or the other."""

from typing import Any

import pytest
from vllm import SamplingParams
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.llm_engine import LLMEngine

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.request_hints import (
    EXTRA_ARGS_KEY,
    RequestHints,
    read_hints,
    with_hints,
)
from reprise.engine_ext.request import input_hints
from reprise.eval.live.settled_report import settled_report

FORGED = {EXTRA_ARGS_KEY: {"namespace": "another's"}}


def test_installed_once() -> None:
    assert registry.apply(Feature.TENANTS, input_hints, role=Role.API_SERVER)
    before = (InputProcessor.process_inputs, LLMEngine.__init__)
    assert registry.apply(Feature.TENANTS, input_hints, role=Role.API_SERVER)
    assert (InputProcessor.process_inputs, LLMEngine.__init__) == before


@pytest.mark.engine
def test_hints_by_salt_and_by_whose_the_engine_is(
    reprise_llm: Any, plain_llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process(llm: Any, salt: str | None = None, **extra: Any) -> Any:
        params = SamplingParams(extra_args=extra or None)
        prompt = {"type": "token", "prompt_token_ids": [5, 6]}
        if salt is not None:
            prompt["cache_salt"] = salt  # type: ignore[assignment]
        processor = llm.llm_engine.input_processor
        request = processor.process_inputs("r", prompt, params, supported_tasks=("generate",))
        assert params.extra_args == (extra or None)
        return request.sampling_params

    # A program that owns its engine is one tenant, but for its salts.
    assert read_hints(process(reprise_llm)) == RequestHints(namespace="")
    assert read_hints(process(reprise_llm, "s")) == RequestHints(namespace="salt-s")
    assert read_hints(process(reprise_llm, "s", **FORGED)) == RequestHints(namespace="salt-s")
    processor = reprise_llm.llm_engine.input_processor
    monkeypatch.delattr(processor, "_reprise_tenant")
    for extra in ({}, FORGED):
        assert read_hints(process(reprise_llm, **extra)) == RequestHints()
        assert read_hints(process(reprise_llm, "s", **extra)).namespace == "salt-s"
    # What our front end has attached stays; another engine's params are left alone.
    ours = with_hints(SamplingParams(), RequestHints(namespace="n"))
    assert read_hints(process(reprise_llm, "s", **(ours.extra_args or {}))).namespace == "n"
    assert process(plain_llm, "s", **FORGED).extra_args == FORGED


@pytest.mark.engine
def test_what_is_nobodys_is_shared_with_nobody(
    reprise_llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with others, not with itself, and nothing of it stays."""
    ids = reprise_llm.get_tokenizer().encode("a private question about a purple refund of nobody")
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)

    def counts() -> tuple[int, int]:
        report = settled_report(reprise_llm)
        by_source = report["provider"]["by_source"]
        drafted = sum(by_source[source]["drafted"] for source in ("near_answer", "corpus"))
        return drafted, report["provider"]["answers"]

    def ask() -> tuple[int, int]:
        before = counts()
        reprise_llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        return tuple(now - was for now, was in zip(counts(), before, strict=True))  # type: ignore

    with monkeypatch.context() as nobodys:
        nobodys.delattr(reprise_llm.llm_engine.input_processor, "_reprise_tenant")
        assert [ask() for _ in range(3)] == [(0, 0)] * 3
    asked = [ask() for _ in range(8)]
    assert asked[0][1] == 1
    assert sum(drafted for drafted, _ in asked) > 0
    with monkeypatch.context() as nobodys:
        nobodys.delattr(reprise_llm.llm_engine.input_processor, "_reprise_tenant")
        assert [ask() for _ in range(3)] == [(0, 0)] * 3
