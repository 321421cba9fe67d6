"""What the plugin applies in front end and engine core, and what it leaves alone."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor

from reprise.engine_ext import plugin, proposer
from reprise.engine_ext.async_llm import EnhancedAsyncLLM
from reprise.engine_ext.checks import start_up
from reprise.engine_ext.compat import versions
from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.proposer import CacheHitProposer
from reprise.engine_ext.worker import worker_installs


@pytest.fixture
def not_applied() -> Iterator[None]:
    """As before the plugin; what it does is reverted, and done again."""
    registry.revert(Feature.FRONT_END)
    yield
    registry.revert(Feature.FRONT_END)
    plugin.apply_all()


def is_applied() -> bool:
    plugin.register()
    return registry.is_applied(Feature.FRONT_END, Role.API_SERVER)


def fake_config(model: str | None) -> Any:
    speculative = SimpleNamespace(model=model) if model is not None else None
    return SimpleNamespace(speculative_config=speculative)


@pytest.mark.usefixtures("not_applied")
def test_only_our_proposer_changes_what_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(cls: type, vllm_config: Any, **_kwargs: Any) -> Any:
        return cls, vllm_config

    monkeypatch.setattr(AsyncLLM, "from_vllm_config", classmethod(build))
    assert is_applied()
    ours, others = fake_config(PROPOSER_PATH), fake_config("some.other.Proposer")
    assert AsyncLLM.from_vllm_config(vllm_config=ours) == (EnhancedAsyncLLM, ours)
    assert AsyncLLM.from_vllm_config(others) == (AsyncLLM, others)
    assert AsyncLLM.from_vllm_config(fake_config(None))[0] is AsyncLLM

    class Derived(AsyncLLM):
        pass

    assert Derived.from_vllm_config(ours)[0] is Derived


@pytest.mark.usefixtures("not_applied")
def test_another_vllm_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.99.0")
    before = AsyncLLM.__dict__["from_vllm_config"]
    monkeypatch.setattr(plugin.logger, "propagate", True)
    assert not is_applied()
    assert AsyncLLM.__dict__["from_vllm_config"] is before
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if "this is vLLM" in line] == [
        "Reprise: this is vLLM 0.99.0, known are 0.26, 0.32, 0.33; vLLM is left as it is; an "
        "engine with our proposer will not start."
    ]
    with pytest.raises(ValueError, match=r"cannot keep tenants apart .* this is vLLM 0\.99\.0"):
        worker_installs.apply_needed(RepriseConfig(), proposer._NEEDED)


@pytest.mark.usefixtures("not_applied")
def test_a_changed_signature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.problem(Feature.FRONT_END) is None

    async def add_request(self: Any, other: Any) -> None: ...

    monkeypatch.setattr(AsyncLLM, "add_request", add_request)
    problem = registry.problem(Feature.FRONT_END)
    assert "AsyncLLM.add_request has parameters ('self', 'other')" in str(problem)
    assert not is_applied()


def test_what_isolates_tenants_is_needed_unless_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(InputProcessor, "process_inputs", lambda self: self)
    with pytest.raises(ValueError, match=r"tenants of requests: InputProcessor\.process_inputs"):
        worker_installs.apply_needed(RepriseConfig(), proposer._NEEDED)
    worker_installs.apply_needed(RepriseConfig(namespace="one"), proposer._NEEDED)


@pytest.mark.usefixtures("not_applied")
def test_the_rust_front_end_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    monkeypatch.setattr(sys, "argv", ["serve", f'{{"model": "{PROPOSER_PATH}"}}'])
    monkeypatch.setattr(start_up, "_checked_pids", set())
    with pytest.raises(SystemExit) as ended:
        plugin.register()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reprise: front end: Reprise needs vLLM's Python front end")
    monkeypatch.setattr(sys, "argv", ["serve"])
    assert is_applied()


def test_the_worker_refuses_the_rust_front_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ValueError, match=r"^Reprise needs .*: unset it\.$"):
        CacheHitProposer(SimpleNamespace())
