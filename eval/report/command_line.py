"""One way for all commands here to read their arguments and to say what is wrong with them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Collection, Sequence

import typer
from typer.main import get_command

from reprise.retrieval.host.process_end import leaving_on_sigterm

BAD_INPUT = 2
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Typer has carried a click of its own for some time, and exports only some of its errors.
_USAGE_ERRORS = tuple(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class InputError(ValueError):
    """What was given cannot be used; the message says what was expected and what came."""


def run_command(
    command: Callable[..., object], arguments: Sequence[str] | None = None, *, name: str
) -> int:
    """Run a typer command; returns the exit status.

    Bad input is one line on standard error and status 2, whether typer finds it or the command
    raises InputError; so is a full disk under the output. SIGTERM ends the command by way of its
    context managers, and all that it has started, within 4 s.

    Args:
        command: a function as for `typer.run`; an int that it returns is the exit status.
        arguments: by default those of this process.
        name: of the command's file, for `--help` and for errors.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        with leaving_on_sigterm():
            status = get_command(app).main(
                args=None if arguments is None else list(arguments),
                prog_name=name,
                standalone_mode=False,
            )
            if sys.stdout is not None:
                sys.stdout.flush()
    except InputError as error:
        return complain(name, str(error))
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        if sys.stdout is not None:  # the end of the process would write to it once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return complain(name, f"the output cannot be written: {error.strerror}")
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        if not isinstance(error, _USAGE_ERRORS):
            raise
        return complain(name, error.format_message())  # type: ignore[attr-defined]
    return status if isinstance(status, int) else 0


def names_of(option: str, text: str, known: Collection[str]) -> list[str]:
    """Return the names that an option lists, separated by commas, each once.

    Raises:
        InputError: one is unknown, or there is none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"{option}: unknown {unknown[0]!r}; there are {', '.join(known)}")
    if not names:
        raise InputError(f"{option}: expected some of {', '.join(known)}")
    return names


def counts_of(option: str, text: str) -> list[int]:
    """Return the numbers that an option lists, separated by commas.

    Raises:
        InputError: they are not all whole numbers from 1 on.
    """
    parts = [part.strip() for part in text.split(",")]
    counts = [int(part) if part.isdecimal() else 0 for part in parts]
    if min(counts) < 1:
        raise InputError(
            f"{option}: expected whole numbers from 1 on with commas between, got {text!r}"
        )
    return counts


def complain(name: str, message: str) -> int:
    """Print one line of what is wrong; returns the exit status for bad input."""
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT
