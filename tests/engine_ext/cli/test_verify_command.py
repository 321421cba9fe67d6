"""`reprise cache verify`: counts, first differences and the report."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner
from warm_starts import run_program

from reprise.engine_ext.cli import verify_command
from reprise.engine_ext.cli.cli import app
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.query.tokenizer_key import vocabulary_key

Put = Callable[..., None]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/answers.sqlite"


@pytest.fixture
def put(url: str, demo_model: Path) -> Put:
    """A function that stores an answer for exact hits, of the demo model's tokenizer."""

    def store(prompt: list[int], response: list[int], text: str = "", **fields: Any) -> None:
        answer = Answer.create(
            prompt_token_ids=prompt,
            response_token_ids=response,
            prompt_text=text,
            exact_key=bytes([prompt[0] % 256] * 16),
            tokenizer_key=vocabulary_key(str(demo_model)) or "",
        )
        fields = {"fingerprint": "f", "verifiable": True, **fields}
        tier = open_tier(url)
        assert tier is not None
        tier.put([msgspec.structs.replace(answer, **fields)])
        tier.close()

    return store


class Engine:
    """Would say 5, 6, 7, 8, ... to everything."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(decode=lambda ids: " ".join(f"<{one}>" for one in ids))

    def generate(self, prompts: list[Any], _params: Any) -> list[Any]:
        return [SimpleNamespace(prompt_logprobs=self._rows(p["prompt_token_ids"])) for p in prompts]

    def _rows(self, ids: list[int]) -> list[Any]:
        """Prompts of these tests are of two tokens."""
        rows: list[Any] = [None]
        for place, token_id in enumerate(ids[1:], -1):
            row = {5 + place: SimpleNamespace(logprob=-0.1), 99: SimpleNamespace(logprob=-0.1)}
            rows.append({token_id: SimpleNamespace(logprob=-3.0)} | row)
        return rows


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["cache", "verify", *arguments])


def test_counts_first_differences_and_the_report(
    url: str, put: Put, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_command, "_engine", Engine)
    put([1, 1], [5, 6, 7, 8])
    put([2, 2], [5, 6, 9, 8], text="what does <b>it</b> cost")
    put([3, 3], [5, 5], verifiable=False)  # sampled, with a seed
    put([4, 4], [5, 5], tokenizer_key="another")
    page = tmp_path / "report.html"
    done = run("--url", url, "--model", str(demo_model), "--html", str(page))
    assert done.exit_code == 0, done.output
    assert "1 of 2 answers would be given again (50.0%)" in done.output
    assert "6 of 8 tokens come before the first difference (75.0%)" in done.output
    assert "1 answer of another tokenizer not checked" in done.output
    assert "token 3 of 4: '<9>' is now '<7>', after '<5> <6>'" in done.output
    text = page.read_text()
    assert "what does &lt;b&gt;it&lt;/b&gt; cost" in text
    assert "3 of 4" in text
    assert "1 of 2 answers" in text
    newest = run("--url", url, "--model", str(demo_model), "--limit", "1")
    assert "0 of 1 answer would be given again" in newest.output


def test_without_such_answers_it_says_so(url: str, put: Put, demo_model: Path) -> None:
    put([4, 4], [5, 5], tokenizer_key="another")
    with pytest.raises(ValueError, match=r"no greedy answers .*; 1 are of another tokenizer"):
        CliRunner().invoke(
            app,
            ["cache", "verify", "--url", url, "--model", str(demo_model)],
            catch_exceptions=False,
            standalone_mode=False,
        )


def test_a_folder_in_which_vllm_can_make_no_sockets(
    url: str, put: Put, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put([1, 1], [5, 6])
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", f"/tmp/{'r' * 66}")
    with pytest.raises(ValueError, match="VLLM_RPC_BASE_PATH names a folder of 71 bytes"):
        CliRunner().invoke(
            app,
            ["cache", "verify", "--url", url, "--model", str(demo_model)],
            catch_exceptions=False,
            standalone_mode=False,
        )


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_model_gives_its_own_answers_again(
    url: str, put: Put, demo_model: Path, plain_llm: Any
) -> None:
    from vllm import SamplingParams

    prompts = [plain_llm.get_tokenizer().encode(f"What does parcel {n} cost?") for n in range(3)]
    made = plain_llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(temperature=0.0, max_tokens=20),
        use_tqdm=False,
    )
    for number, (prompt, output) in enumerate(zip(prompts, made, strict=True)):
        response = list(output.outputs[0].token_ids)
        if number == 2:
            response[5] += 1
        put(prompt, response, exact_key=bytes([number] * 16))
    source = "from reprise.engine_ext.cli.cli import main; main()"
    command = ["-c", source, "cache", "verify"]
    command += ["--url", url, "--model", str(demo_model), "--dtype", "float32"]
    done = run_program(command, environment={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 of 3 answers would be given again" in done.stdout
    assert "token 6 of 20" in done.stdout
