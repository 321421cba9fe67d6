"""The command line: what it offers, and one line with exit status 2 for what it does not know."""

import subprocess
import sys

import pytest

from reprise import __version__


def _reprise(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from reprise.engine_ext.cli.cli import main; main()",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_version() -> None:
    assert _reprise("--version").stdout == f"reprise {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_the_commands(arguments: tuple[str, ...]) -> None:
    shown = _reprise(*arguments)
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("serve", "doctor", "cache"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--frobnicate",), "--frobnicate"),
        (("frobnicate",), "frobnicate"),
        (("serve",), "MODEL"),
        (("cache", "stats", "--url", "ftp://x"), "ftp://x"),
        (("serve", "m", "--speculative-config", "{}"), "--speculative-config"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: tuple[str, ...], named: str) -> None:
    refused = _reprise(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert named.lower() in refused.stderr.lower()
