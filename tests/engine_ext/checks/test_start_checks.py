"""What ends a start before vLLM loads anything, and what only warns."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reprise.engine_ext.checks import start_up
from reprise.engine_ext.checks.start_checks import (
    check_start,
    model_of,
    read_options,
    refusal_of,
    warnings_of,
)
from reprise.engine_ext.core.config import CHECKED_VARIABLE
from reprise.engine_ext.core.proposer_path import PROPOSER_PATH

FREE = ("--host", "127.0.0.1", "--port", "0")


def refusal(model: Path | str, *arguments: str) -> str:
    return refusal_of(check_start(str(model), arguments or FREE)) or ""


def test_nothing_stands_against_the_demo_model(demo_model: Path) -> None:
    assert refusal(demo_model) == ""


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("REPRISE_RETRIEVAL__URL", "redi://x", "redi://x"),
        ("REPRISE_RETRIEVAL__URL", "sqlite:///no/such/folder/a.sqlite", "/no/such/folder"),
        ("REPRISE_DRAFT__VERIFY_COST", "1", "REPRISE_DRAFT__VERIFY_COST"),
        ("REPRISE_SERVING__EXACT_HITS", "perhaps", "exact_hits"),
        ("REPRISE_CONFIG", "/no/such/file.toml", "/no/such/file.toml"),
        ("REPRISE_RETRIEVAL__EMBEDDING_MODEL", "./no-such-folder", "./no-such-folder"),
    ],
)
def test_a_bad_setting_ends_the_start(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: str
) -> None:
    monkeypatch.setenv(variable, value)
    line = refusal(demo_model)
    assert named in line
    assert "\n" not in line


def test_additional_config_is_checked_too(demo_model: Path) -> None:
    def given(settings: object) -> str:
        return refusal(demo_model, *FREE, "--additional-config", json.dumps(settings))

    assert "'drafs'" in given({"reprise": {"drafs": {}}})
    assert "got list" in given({"reprise": []})
    assert "admin_token" in given({"reprise": {"serving": {"admin_token": "secret"}}})
    assert given({"reprise": {"drafts": {"verify_cost": 0.02}}, "others": 1}) == ""
    assert "must be JSON" in refusal(demo_model, *FREE, '--additional-config={"reprise')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder as far as is looked at."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(2048))
    (made / "tokenizer.json").write_text("{}")
    return made


def test_a_folder_that_is_no_whole_model(folder: Path) -> None:
    assert refusal(folder) == ""
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json is no JSON" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    assert f"there is none in {folder}" in refusal(folder)
    assert refusal(folder, *FREE, "--skip-tokenizer-init") == ""
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refusal(folder)
    assert refusal(folder, *FREE, "--load-format=dummy") == ""
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "model-1.safetensors").write_bytes(bytes(2048))
    assert "lacks 1 of 2 files of weights: model-2.safetensors" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)
    assert "has no config.json" not in refusal(folder, *FREE, "--hf-config-path", "owner/name")


def test_a_model_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no folder /no/such" in refusal("/no/such")
    assert "neither a folder here nor a name on the hub" in refusal("a/b/c")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not in the hub's cache" in refusal("nobody/nothing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert refusal("nobody/nothing") == ""  # it may be downloaded
    assert refusal("s3://bucket/model") == ""
    assert "there is no folder /no/such" in refusal(
        "nobody/nothing", *FREE, "--tokenizer", "/no/such"
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_port_that_is_taken(demo_model: Path, taken_port: int, tmp_path: Path) -> None:
    given = ("--host", "127.0.0.1", "--port", str(taken_port))
    assert f"127.0.0.1:{taken_port} is taken" in refusal(demo_model, *given)
    assert refusal_of(check_start(str(demo_model), given, with_port=False)) is None
    assert refusal(demo_model, *given, "--uds", "/tmp/socket") == ""
    assert "cannot be used" in refusal(demo_model, "--host", "203.0.113.7")
    assert "up to 65535" in refusal(demo_model, "--port", "70000")
    file = tmp_path / "vllm.yaml"
    file.write_text(f"host: 127.0.0.1\nport: {taken_port}\n")
    assert "is taken" in refusal(demo_model, "--config", str(file))
    assert refusal(demo_model, "--config", str(file), "--port", "0") == ""
    file.write_text("[")
    assert f"--config {file} cannot be read" in refusal(demo_model, "--config", str(file))


def test_what_may_come_later_is_a_warning(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", "redis://:secret@127.0.0.1:1/0")
    monkeypatch.setenv("REPRISE_RETRIEVAL__EMBEDDING_MODEL", "no-such-model")
    found = check_start(str(demo_model), FREE)
    assert refusal_of(found) is None
    warnings = "\n".join(warnings_of(found))
    assert "127.0.0.1:1" in warnings
    assert "no-such-model is not on this machine" in warnings
    assert "secret" not in warnings


def test_a_redis_that_says_nothing_costs_no_more_than_its_time(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", f"redis://127.0.0.1:{taken_port}/0")
    began_s = time.monotonic()
    (warning,) = warnings_of(check_start(str(demo_model), FREE))
    assert "does not answer" in warning
    assert time.monotonic() - began_s < 60.0  # and not for ever


def test_the_model_and_the_options_of_a_command_line() -> None:
    assert model_of(["serve", "m", "--port", "1"]) == "m"
    assert model_of(["m", "--port", "1"]) == "m"
    assert model_of(["--port", "1", "--model", "m"]) == "m"
    assert model_of(["--port", "1"]) is None
    options = read_options(["m", "--max_model_len=5", "--headless", "--port", "1", "--port", "2"])
    assert options == {"max-model-len": "5", "headless": "true", "port": "2"}


def test_a_plain_server_is_checked_by_the_plugin_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "/no/such/model"])
    monkeypatch.setattr(start_up, "_checked_pids", set())
    with pytest.raises(SystemExit) as ended:
        start_up.check_once()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "reprise: model: there is no folder /no/such/model\n"
    start_up.check_once()  # loaded again: once is enough
    monkeypatch.setattr(start_up, "_checked_pids", set())
    monkeypatch.setenv(CHECKED_VARIABLE, str(os.getpid()))
    start_up.check_once()  # `reprise serve` has checked


@pytest.mark.slow
def test_the_command_ends_with_one_line_and_the_plugin_too(tmp_path: Path) -> None:
    """As users type it; for `vllm serve` what its process does before anything else."""
    pytest.importorskip("vllm")
    environment = {**os.environ, "REPRISE_RETRIEVAL__URL": "redi://x"}
    plugin = (
        "import sys; sys.argv[0] = 'vllm'; from reprise.engine_ext import plugin; plugin.register()"
    )
    command = "from reprise.engine_ext.cli.cli import main; main()"
    arguments = ["serve", "m", "--speculative-config", json.dumps({"model": PROPOSER_PATH})]
    for code, given in ((command, arguments[:2]), (plugin, arguments)):
        done = subprocess.run(
            [sys.executable, "-c", code, *given],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("reprise: settings: retrieval.url")
        assert "Traceback" not in done.stderr


def test_offline_a_model_is_looked_for_where_vllm_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the hub's own cache: `--download-dir` is for what is downloaded."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--owner--model" / "snapshots" / "a1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text("a1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refusal("owner/model", *FREE, "--download-dir", str(tmp_path / "other")) == ""
    assert "not in the hub's cache" in refusal("owner/model", *FREE, "--revision", "b2")
