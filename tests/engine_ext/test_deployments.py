"""Real servers that are started in other ways: several API server processes, data parallel
engines, adapters. Each answers as plain vLLM does, the second time too."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

# Defined in this folder's conftest.py, which pytest imports under a name of its own.
Server = Any

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

QUESTIONS = [
    f"How do I {what}?"
    for what in (
        "return a parcel",
        "change my delivery address",
        "pay by card",
        "cancel my order",
        "reset the password",
        "talk to somebody",
    )
]


def ask_all(server: Server, **body: Any) -> list[tuple[str, str]]:
    """Each question's answer, and what the reply said of the cache; four at a time."""
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda question: server.chat(question, **body), QUESTIONS))
    assert {reply.status for reply in replies} == {200}
    return [(reply.text, reply.cache) for reply in replies]


def texts(answers: list[tuple[str, str]]) -> list[str]:
    return [text for text, _ in answers]


@pytest.mark.parametrize(
    "arguments",
    [("--api-server-count", "2"), ("--data-parallel-size", "2")],
    ids=["two API servers", "two engines"],
)
def test_several_processes_answer_as_one(
    demo_model: Path, server_builder: Any, plain_server: Server, arguments: tuple[str, ...]
) -> None:
    wanted = texts(ask_all(plain_server))
    server = server_builder(demo_model, *arguments, with_reprise=True)
    try:
        server.wait()
        children = psutil.Process(server.process.pid).children(recursive=True)
        names = [child.name() for child in children]
        # vLLM starts as many API servers as engines, unless it is told.
        assert sum(name.startswith("VLLM::APIServer") for name in names) == 2, names
        rounds = [ask_all(server) for _ in range(4)]
        assert [texts(answers) for answers in rounds] == [wanted] * 4
        # Whichever process a question reaches, after four rounds some have met their own answer.
        assert any(cache == "exact" for answers in rounds for _, cache in answers)
        forget_in_all_processes(server)
        # Each process knows the keys: to another tenant all of it is new.
        others = ask_all(server, key=server.api_keys[1])
        assert texts(others) == wanted
        assert "exact" not in {cache for _, cache in others}
        assert server.metric("reprise:errors_total") == 0
    finally:
        server.stop()


def wait_for_each_process(
    server: Server, path: str, is_done: Callable[[dict[str, Any]], bool], *, within_s: float
) -> None:
    """Ask until each of two API server processes has said what is waited for: which of them gets
    a connection is up to the kernel, and a free one may get all that come one after the other."""
    deadline_s = time.monotonic() + within_s
    done: set[int] = set()
    with ThreadPoolExecutor(8) as pool:
        while len(done) < 2:
            assert time.monotonic() < deadline_s, (path, done, server.log()[-4000:])
            replies = [reply.json for reply in pool.map(server.send, [path] * 8)]
            done |= {reply["process_id"] for reply in replies if is_done(reply)}
            time.sleep(0.1)


def forget_in_all_processes(server: Server) -> None:
    """Whichever process is asked to forget, all do, and so does retrieval."""

    def has_retrieval(health: dict[str, Any]) -> bool:
        parts = health["components"].items()
        return {part["state"] for name, part in parts if "retrieval" in name} == {"ready"}

    def has_all(stats: dict[str, Any]) -> bool:
        stored = sum(worker["provider"]["answers"] for worker in stats["workers"])
        return stored >= len(QUESTIONS)

    wait_for_each_process(server, "/reprise/health", has_retrieval, within_s=200.0)
    wait_for_each_process(server, "/reprise/stats", has_all, within_s=200.0)
    gone = server.send("/reprise/cache?everything=true", method="DELETE").json
    assert gone["removed"] >= gone["retrieval"] == len(QUESTIONS)
    assert not gone["pending"]
    wait_for_each_process(
        server, "/reprise/cache", lambda reply: not reply["found"], within_s=120.0
    )
    assert "exact" not in {cache for _, cache in ask_all(server)}


def make_adapter(model: Path, folder: Path, *, seed: int = 0) -> Path:
    """A LoRA adapter of rank 8 with random weights, strong enough to change answers."""
    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = heads * config.get("head_dim", hidden // heads)
    random = np.random.default_rng(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = random.normal(0, 0.3, (8, hidden)).astype(np.float32)
        weights[f"{name}.lora_B.weight"] = random.normal(0, 0.3, (width, 8)).astype(np.float32)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16}
    adapter |= {"target_modules": ["q_proj"], "bias": "none", "base_model_name_or_path": ""}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return folder


def test_an_adapter_has_answers_of_its_own(
    demo_model: Path, tmp_path: Path, server_builder: Any
) -> None:
    adapter = make_adapter(demo_model, tmp_path / "adapter")
    arguments = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={adapter}")
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    plain, ours = (
        server_builder(demo_model, *arguments, with_reprise=with_reprise, **environment)
        for with_reprise in (False, True)
    )
    try:
        for server in (plain, ours):
            server.wait()
        for model in ("demo", "tuned"):
            wanted = texts(ask_all(plain, model=model))
            first, second = (ask_all(ours, model=model) for _ in range(2))
            assert texts(first) == texts(second) == wanted
            assert "exact" not in {cache for _, cache in first}
            assert {cache for _, cache in second} == {"exact"}
        assert texts(ask_all(ours)) != texts(ask_all(ours, model="tuned"))
        of_adapter = wanted
        other = make_adapter(demo_model, tmp_path / "other", seed=1)
        reload = {"lora_name": "tuned", "lora_path": str(other), "load_inplace": True}
        for server in (plain, ours):
            assert server.send("/v1/load_lora_adapter", reload).status == 200
        reloaded = texts(ask_all(plain, model="tuned"))
        assert reloaded != wanted
        first, second = (ask_all(ours, model="tuned") for _ in range(2))
        assert texts(first) == texts(second) == reloaded
        assert "exact" not in {cache for _, cache in first}
        assert {cache for _, cache in second} == {"exact"}
        assert ours.metric("reprise:errors_total") == 0
    finally:
        for server in (plain, ours):
            server.terminate()
        for server in (plain, ours):
            server.stop()
    several = server_builder(demo_model, *arguments, "--api-server-count", "2", with_reprise=True)
    try:
        several.wait()
        rounds = [ask_all(several, model="tuned") for _ in range(4)]
        assert [texts(answers) for answers in rounds] == [of_adapter] * 4
        # Whichever process a question reaches, after four rounds some have met their own answer.
        assert any(cache == "exact" for answers in rounds for _, cache in answers)
        of_model = ask_all(several, model="demo")
        assert texts(of_model) != of_adapter
        assert "exact" not in {cache for _, cache in of_model}
        assert several.metric("reprise:errors_total") == 0
    finally:
        several.stop()
