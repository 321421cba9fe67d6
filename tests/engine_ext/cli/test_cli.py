"""The command line: what it offers, and one line with exit status 2 for what it does not know."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from reprise import __version__
from reprise.engine_ext.cli.cli import main
from reprise.retrieval import Answer
from reprise.retrieval.tiers.sqlite_tier import SqliteTier


class Ended(NamedTuple):
    """What a command came to."""

    status: object
    stdout: str
    stderr: str


@pytest.fixture
def reprise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs the command in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["reprise", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code, *capsys.readouterr())

    return run


def test_version_in_a_process_of_its_own() -> None:
    program = "from reprise.engine_ext.cli.cli import main; main()"
    command = [sys.executable, "-c", program, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout == f"reprise {__version__}\n"


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
@pytest.mark.parametrize("arguments", ["--version", "cache export - --url $0"])
def test_output_that_cannot_be_written_is_one_line(
    tmp_path: Path, redirection: str, arguments: str
) -> None:
    tier = SqliteTier(tmp_path / "answers.sqlite")
    tier.put([Answer.create(prompt_token_ids=[1], response_token_ids=[2])])
    tier.close()
    program = "from reprise.engine_ext.cli.cli import main; main()"
    shell = f"{sys.executable} -c '{program}' {arguments} {redirection}"
    command = ["sh", "-c", shell, f"sqlite:///{tmp_path}/answers.sqlite"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if redirection == ">&-" and arguments == "--version":
        assert (done.returncode, done.stderr) == (0, "")  # nobody wants to read it
        return
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    reason = "standard output is closed" if redirection == ">&-" else "No space left on device"
    assert done.stderr.startswith("reprise: ")
    assert reason in done.stderr


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_the_commands(reprise: Callable[..., Ended], arguments: tuple[str, ...]) -> None:
    shown = reprise(*arguments)
    assert shown.status == 0
    assert all(command in shown.stdout for command in ("serve", "doctor", "cache"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--frobnicate",), "--frobnicate"),
        (("frobnicate",), "frobnicate"),
        (("serve",), "MODEL"),
        (("serve", "--port", "8000", "m"), "MODEL before the options of vLLM, got --port"),
        (("cache", "stats", "--url", "ftp://x"), "ftp://x"),
        (("serve", "m", "--speculative-config", "{}"), "--speculative-config"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    reprise: Callable[..., Ended], arguments: tuple[str, ...], named: str
) -> None:
    refused = reprise(*arguments)
    assert refused.status == 2
    assert refused.stderr.count("\n") == 1
    assert named.lower() in refused.stderr.lower()
