"""The command line and environment that `reprise serve` hands to vLLM."""

import json
import os
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from reprise.engine_ext.checks import tier_checks
from reprise.engine_ext.cli import serve_command
from reprise.engine_ext.cli.cli import main
from reprise.engine_ext.cli.serve_command import (
    PROPOSER_PATH,
    serve,
    server_command,
    server_environment,
)
from reprise.engine_ext.core.config import CHECKED_VARIABLE


def test_options_of_vllm_pass_through_and_the_proposer_is_named() -> None:
    command = server_command("m", ["--port", "8001"], num_speculative_tokens=7)
    assert command[:2] == [sys.executable, "-m"]
    assert command[-2:] == ["--port", "8001"]
    speculative = json.loads(command[command.index("--speculative-config") + 1])
    assert speculative == {"model": PROPOSER_PATH, "num_speculative_tokens": 7}


def test_both_builds_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_command, "_has_distribution", lambda name: name == "vllm")
    command = server_command("m", [], num_speculative_tokens=1)
    assert command[2:5] == ["vllm.entrypoints.cli.main", "serve", "m"]
    monkeypatch.setattr(serve_command, "_has_distribution", lambda _name: False)
    command = server_command("m", [], num_speculative_tokens=1)
    assert command[2:4] == ["reprise.engine_ext.cli.vllm_serve", "m"]


def test_on_the_cpu_build_vllms_own_command_gets_the_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm")
    from vllm.entrypoints.cli.serve import ServeSubcommand

    from reprise.engine_ext.cli import vllm_serve

    served = []
    monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(served.append))
    command = server_command("m", ["--api-server-count", "2"], num_speculative_tokens=7)
    vllm_serve.main(command[command.index("m") :])
    (options,) = served
    assert (options.model_tag, options.api_server_count) == ("m", 2)
    assert json.loads(json.dumps(options.speculative_config))["num_speculative_tokens"] == 7


@pytest.mark.parametrize(
    "option",
    [
        *("--speculative-config", "--speculative-config={}", "--speculative_config", "-sc"),
        *("--speculative-config.method", "--speculative_config.method=ngram", "-sc.method"),
        *("--spec-method", "--spec_model", "--spec-tokens=4"),
    ],
)
def test_a_speculative_config_of_ones_own_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="num-speculative-tokens"):
        server_command("m", [option, "{}"], num_speculative_tokens=1)


def test_a_speculative_config_in_vllms_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text("speculative-config: {method: ngram, num_speculative_tokens: 4}\n")
    with pytest.raises(ValueError, match="num-speculative-tokens"):
        server_command("m", ["--config", str(file)], num_speculative_tokens=1)


def test_admin_routes_are_let_in_and_nothing_is_shut_out() -> None:
    names = server_environment({"A": "1"})["VLLM_PLUGINS"].split(",")
    assert {"reprise", "lora_hf_hub_resolver"} <= set(names)
    assert server_environment({"VLLM_PLUGINS": "mine"})["VLLM_PLUGINS"] == "mine,reprise"
    assert server_environment({"VLLM_PLUGINS": ""})["VLLM_PLUGINS"] == "reprise"


def test_the_command_replaces_this_process(
    monkeypatch: pytest.MonkeyPatch, demo_model: Path
) -> None:
    started = []
    monkeypatch.setattr(serve_command.os, "execve", lambda *given: started.append(given))
    app = typer.Typer()
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
    given = [str(demo_model), "--num-speculative-tokens", "3", "--port", "0"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    ((executable, command, environment),) = started
    assert executable == sys.executable
    assert command[-2:] == ["--port", "0"]
    assert "reprise" in environment["VLLM_PLUGINS"]
    assert environment[CHECKED_VARIABLE] == str(os.getpid())


def test_what_cannot_work_is_not_started(monkeypatch: pytest.MonkeyPatch, demo_model: Path) -> None:
    started = []
    monkeypatch.setattr(serve_command.os, "execve", lambda *given: started.append(given))
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", "redi://x")
    app = typer.Typer()
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
    result = CliRunner().invoke(app, [str(demo_model), "--port", "0"])
    assert isinstance(result.exception, ValueError)
    assert "redi://x" in str(result.exception)
    assert started == []


def test_kv_tiers_become_vllms_own_option(
    monkeypatch: pytest.MonkeyPatch, demo_model: Path, tmp_path: Path
) -> None:
    started = []
    monkeypatch.setattr(serve_command.os, "execve", lambda *given: started.append(given))
    monkeypatch.setattr(tier_checks, "is_cpu_build", lambda: False)
    app = typer.Typer()
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
    tiers = f"cpu=1MiB,disk={tmp_path}:1MiB"
    result = CliRunner().invoke(app, [str(demo_model), "--kv-tiers", tiers, "--port", "0"])
    assert result.exit_code == 0, result.output
    ((_, command, _),) = started
    config = json.loads(command[command.index("--kv-transfer-config") + 1])
    assert config["kv_load_failure_policy"] == "recompute"
    assert "--kv-tiers" not in command
    assert command[-2:] == ["--port", "0"]


@pytest.mark.parametrize(
    ("tiers", "says"),
    [("cpu=1GiB", "computes on the CPU"), ("cpu=1GB", "got '1GB'"), ("disk=/kv:1GiB", "add cpu=")],
)
def test_kv_tiers_that_cannot_be_end_the_start(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    demo_model: Path,
    tiers: str,
    says: str,
) -> None:
    monkeypatch.setattr(tier_checks, "is_cpu_build", lambda: True)
    given = ["reprise", "serve", str(demo_model), "--port", "0", "--kv-tiers", tiers]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reprise: --kv-tiers")
    assert says in line
