"""Baselines are vLLM as its users get it: our plugin is loaded into our own engines alone."""

import tempfile
from importlib import metadata
from typing import Any

import pytest

from reprise.engine_ext.cli import worker_process
from reprise.eval.benchmarks.serving import load as serving_load
from reprise.eval.live import engine_turns
from reprise.eval.live.engine_environment import engine_environment
from reprise.eval.live.live_worker import LiveJob, speculative_config
from reprise.eval.report.command_line import InputError
from reprise.eval.report.machine import describe_machine

BASELINES = ("none", "ngram", "suffix")


class _Started(Exception):  # noqa: N818 - nothing went wrong
    """Instead of a process."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environments of processes that would have been started."""
    environments: list[dict[str, str]] = []

    def popen(*_given: Any, env: dict[str, str], **_options: Any) -> None:
        environments.append(env)
        raise _Started

    monkeypatch.setattr(worker_process.subprocess, "Popen", popen)
    monkeypatch.setattr(serving_load.subprocess, "Popen", popen)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    return environments


def plugins(environment: dict[str, str]) -> set[str]:
    return set(environment["VLLM_PLUGINS"].split(","))


@pytest.mark.parametrize("method", [*BASELINES, "reprise"])
def test_an_engine(started: list[dict[str, str]], method: str) -> None:
    job = LiveJob(
        model="m",
        speculative_config=speculative_config(method, None),
        rows=[],
        concurrency=1,
        seed=0,
    )
    with pytest.raises(_Started):
        engine_turns.serve([job])
    assert ("reprise" in plugins(started[0])) == (method == "reprise")
    assert "lora_hf_hub_resolver" in plugins(started[0]), "vLLM's own are shut out"


@pytest.mark.parametrize("method", [*BASELINES, "reprise"])
def test_a_server(
    started: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    monkeypatch.setattr(serving_load.tempfile, "TemporaryFile", lambda: log)
    with log, pytest.raises(_Started):
        serving_load.Server("m", serving_load.SPECULATIVE[method], dtype="auto")
    assert ("reprise" in plugins(started[0])) == (method == "reprise")


def test_what_the_user_has_chosen_stays() -> None:
    chosen = {"VLLM_PLUGINS": "mine,reprise", "OTHER": "1"}
    assert engine_environment(chosen, with_reprise=False) == {"VLLM_PLUGINS": "mine", "OTHER": "1"}
    assert engine_environment(chosen, with_reprise=True)["VLLM_PLUGINS"] == "mine,reprise"
    none = engine_environment({"VLLM_PLUGINS": ""}, with_reprise=False)
    assert none == {"VLLM_PLUGINS": ""}


def test_a_figure_names_processor_and_instruction_set() -> None:
    xeon = "processor : 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: avx2 avx512f amx_tile\n"
    assert describe_machine(xeon, {}).startswith("Intel(R) Xeon(R); AMX; ")
    epyc = "model name : AMD EPYC\nflags : fpu avx2 avx512f avx512_bf16\n"
    held = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert describe_machine(epyc, {}).startswith("AMD EPYC; AVX-512 with bfloat16; ")
    assert "; oneDNN held to AVX2; " in describe_machine(epyc, held)
    assert describe_machine("", {}).startswith("unknown processor; ")


def test_an_engine_without_our_plugin_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [])
    with pytest.raises(InputError, match="vLLM finds no plugin 'reprise' here"):
        engine_environment(with_reprise=True)
    assert "reprise" not in engine_environment(with_reprise=False)["VLLM_PLUGINS"].split(",")
