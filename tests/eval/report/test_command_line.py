"""Every command here: help that helps, and one line about what is wrong."""

import importlib
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reprise.eval.report.command_line import InputError, counts_of, names_of, run_command

EVAL = Path(__file__).resolve().parents[3] / "eval"
COMMANDS = sorted(
    path for path in EVAL.rglob("*.py") if '__name__ == "__main__"' in path.read_text()
)
STARTED_BY_OTHERS = {"live_worker.py"}
Command = Callable[[list[str]], int]


@pytest.fixture(
    params=[path for path in COMMANDS if path.name not in STARTED_BY_OTHERS],
    ids=lambda path: path.name,
)
def command(request: pytest.FixtureRequest) -> Command:
    """The command of a file, as one that takes arguments and returns its exit status."""
    path: Path = request.param
    name = ".".join(("reprise.eval", *path.relative_to(EVAL).with_suffix("").parts))
    main = importlib.import_module(name).main
    if "arguments" in inspect.signature(main).parameters:
        return main
    return lambda arguments: run_command(main, arguments, name=path.name)


def test_help_says_what_is_done_and_explains_every_option(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["--help"]) == 0
    usage, _, options = capsys.readouterr().out.partition("Options:")
    assert len(usage.split("\n\n")[1]) > 20
    entries = [entry.split() for entry in options.split("\n  --")[1:]]
    unexplained = [entry[0] for entry in entries if len(entry) < 3]
    assert not unexplained


def test_an_unknown_option_is_one_line(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["--no-such-option"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "--no-such-option" in line


def refuse(number: int = 0) -> int:
    if number == 1:
        raise InputError("expected\nno 1")
    return number


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--number", "3"], 3, ""),
        (["--number", "1"], 2, "x.py: error: expected no 1\n"),
        (["--number", "x"], 2, "x.py: error: Invalid value for '--number': "),
    ],
)
def test_status_and_complaint(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(refuse, arguments, name="x.py") == status
    assert capsys.readouterr().err.startswith(said)


PRINTING = """
import sys
from reprise.eval.report.command_line import run_command

def show() -> None:
    print("a figure", flush={flushes})

sys.exit(run_command(show, [{argument}], name="show.py"))
"""


@pytest.mark.parametrize(("flushes", "argument"), [(True, ""), (False, ""), (False, "'--help'")])
def test_a_full_disk_under_the_output_is_one_line(flushes: bool, argument: str) -> None:
    program = PRINTING.format(flushes=flushes, argument=argument)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, check=False
        )
    said = b"show.py: error: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


WAITING = """
import contextlib, sys, time
from reprise.eval.report.command_line import run_command

def wait() -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(print, "cleaned up", flush=True)
        print("started", flush=True)
        time.sleep(600)

sys.exit(run_command(wait, [], name="wait.py"))
"""


def test_sigterm_leaves_through_what_cleans_up() -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "started\n"
    began_s = time.monotonic()
    command.send_signal(signal.SIGTERM)
    assert command.stdout.read() == "cleaned up\n"
    assert command.wait(100) == 128 + signal.SIGTERM
    assert time.monotonic() - began_s < 60  # and not the 600 s that it sleeps
    command.stdout.close()


def test_lists_in_options() -> None:
    assert names_of("--only", " a, b,,a", ("b", "a")) == ["a", "b"]
    assert counts_of("--batch", "8, 1,8") == [8, 1, 8]
    with pytest.raises(InputError, match="--only: unknown 'c'; there are a, b"):
        names_of("--only", "a,c", ("a", "b"))
    with pytest.raises(InputError, match="--only: expected some of a, b"):
        names_of("--only", ",", ("a", "b"))
    for text in ("1,x", "0", "", "1,-2", "1.5"):
        with pytest.raises(InputError, match=f"--batch: expected whole numbers .* got '{text}'"):
            counts_of("--batch", text)
