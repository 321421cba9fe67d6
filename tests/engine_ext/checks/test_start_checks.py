"""What ends a start before vLLM loads anything, and what only warns."""

import errno
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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


def hub_is_found(monkeypatch: pytest.MonkeyPatch, error: socket.gaierror | None) -> None:
    """Have the hub's name looked up with this outcome, and others as they are."""
    from huggingface_hub import constants

    look_up = socket.getaddrinfo

    def looked_up(host: str, *rest: Any, **more: Any) -> Any:
        if host != urlsplit(constants.ENDPOINT).hostname:
            return look_up(host, *rest, **more)
        if error is not None:
            raise error
        return []

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)


def test_a_name_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_OFFLINE", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    hub_is_found(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    line = refusal("nosuchmodel")
    assert line.startswith("model: nosuchmodel is neither a folder here nor in the hub's cache")
    assert "cannot be found: Name or service not known" in line
    for option in ("--hf-config-path=x/y", "--config-format=my_own"):
        assert refusal("nosuchmodel", *FREE, option) == ""
    # The network may come up while vLLM tries.
    hub_is_found(monkeypatch, socket.gaierror(socket.EAI_AGAIN, "Temporary failure"))
    findings = check_start("nosuchmodel", FREE)
    assert refusal_of(findings) is None
    assert any("cannot be found: Temporary failure" in each for each in warnings_of(findings))
    monkeypatch.setenv("https_proxy", "http://proxy:1")  # whose network is another
    assert not any("nosuchmodel" in each for each in warnings_of(check_start("nosuchmodel", FREE)))


def test_the_rust_front_end_ends_the_start(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    assert "Reprise needs vLLM's Python front end" in refusal(demo_model)


def test_a_model_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no folder /no/such" in refusal("/no/such")
    assert "neither a folder here nor a name on the hub" in refusal("a/b/c")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not in the hub's cache" in refusal("nobody/nothing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub_is_found(monkeypatch, None)
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


@pytest.fixture
def folder_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """A function that makes the folder for temporary files one whose path has so many bytes."""
    with tempfile.TemporaryDirectory(prefix="r-") as base:

        def make(num_bytes: int) -> str:
            folder = f"{base}/{'é' * ((num_bytes - len(base) - 1) // 2)}"
            folder += "x" * (num_bytes - len(os.fsencode(folder)))
            os.makedirs(folder, exist_ok=True)
            monkeypatch.setenv("TMPDIR", folder)
            monkeypatch.setattr(tempfile, "tempdir", None)
            return folder

        yield make
        monkeypatch.setattr(tempfile, "tempdir", None)


def binds_as_vllm_does() -> bool:
    zmq = pytest.importorskip("zmq")
    network_utils = pytest.importorskip("vllm.utils.network_utils")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as one:
        try:
            one.bind(network_utils.get_open_zmq_ipc_path())
        except zmq.ZMQError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return False
    return True


def test_as_long_a_temporary_folder_as_vllms_sockets_allow(
    demo_model: Path, folder_of: Callable[[int], str]
) -> None:
    """To the byte what vLLM can start with."""
    pytest.importorskip("vllm")
    for num_bytes, can_start in ((69, True), (70, True), (71, False), (200, False)):
        folder = folder_of(num_bytes)
        assert binds_as_vllm_does() is can_start
        line = refusal(demo_model)
        assert (line == "") is can_start
        if not can_start:
            named = f"TMPDIR names a folder of {num_bytes} bytes, {folder}, and at most 70 leave"
            assert named in line
            assert "\n" not in line


def test_vllms_own_variable_for_sockets_goes_before(
    demo_model: Path, folder_of: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(71)
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/tmp")
    assert refusal(demo_model) == ""
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", folder)
    line = refusal(demo_model)
    assert f"VLLM_RPC_BASE_PATH names a folder of 71 bytes, {folder}, and at most 70" in line
    monkeypatch.delenv("VLLM_RPC_BASE_PATH")
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setenv("TMP", folder)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert "TMP names a folder of 71 bytes" in refusal(demo_model)


def test_with_engines_on_other_machines_a_long_folder_is_a_warning(
    demo_model: Path, folder_of: Callable[[int], str]
) -> None:
    folder_of(71)
    given = (*FREE, "--data-parallel-size", "4", "--data-parallel-size-local", "2")
    found = check_start(str(demo_model), given)
    assert refusal_of(found) is None
    assert any("at most 70" in each for each in warnings_of(found))
    assert "at most 70" in refusal(demo_model, *FREE, "--data-parallel-size", "2")


def test_a_servers_own_socket_whose_path_is_too_long(demo_model: Path) -> None:
    path = f"/tmp/{'s' * 102}"
    assert refusal(demo_model, "--uds", path) == ""
    assert "--uds: " in (line := refusal(demo_model, "--uds", f"{path}s"))
    assert "108 bytes, and at most 107 fit" in line
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match="too long"):
        one.bind(f"{path}s")


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
@pytest.mark.parametrize("variable", ["REPRISE_RETRIEVAL__URL", "TMPDIR", "VLLM_RPC_BASE_PATH"])
def test_the_command_ends_with_one_line_and_the_plugin_too(variable: str, tmp_path: Path) -> None:
    """As users type it; for `vllm serve` what its process does before anything else."""
    pytest.importorskip("vllm")
    long = tmp_path / ("long" * 20)
    long.mkdir()
    value, line = {
        "REPRISE_RETRIEVAL__URL": ("redi://x", "reprise: settings: retrieval.url"),
    }.get(variable, (str(long), f"reprise: vLLM's sockets: {variable} names a folder of "))
    environment = {**os.environ, variable: value}
    plugin = (
        "import sys; sys.argv[0] = 'vllm'; from reprise.engine_ext import plugin; plugin.register()"
    )
    command = "from reprise.engine_ext.cli.cli import main; main()"
    arguments = ["serve", "m", "--speculative-config", json.dumps({"model": PROPOSER_PATH})]
    for code, given in ((command, arguments[:2]), (plugin, arguments)):
        used_s = _of_children_s()
        done = subprocess.run(
            [sys.executable, "-c", code, *given],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(line)
        assert "Traceback" not in done.stderr
        if code is command:
            assert len(done.stderr.splitlines()) == 1
            # The time of processors, not of a clock: others may be at work on the machine.
            assert _of_children_s() - used_s < 3.0


def _of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    # What is there needs no hub.
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub_is_found(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    assert refusal("owner/model") == ""
    assert "cannot be found" in refusal("owner/other")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refusal("owner/model", *FREE, "--download-dir", str(tmp_path / "other")) == ""
    assert "not in the hub's cache" in refusal("owner/model", *FREE, "--revision", "b2")
