"""The command `reprise`."""

import os
import sys
from typing import NoReturn

import typer

from reprise import __version__
from reprise.engine_ext.cli.doctor import doctor
from reprise.engine_ext.cli.pins_command import app as pins_app
from reprise.engine_ext.cli.serve_command import serve
from reprise.engine_ext.cli.verify_command import verify
from reprise.retrieval.cli.cache_cli import app as cache_app
from reprise.retrieval.host.process_end import leaving_on_sigterm

app = typer.Typer(
    name="reprise",
    help="Cached answers of similar prompts, drafted for speculative decoding in vLLM.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(doctor)
cache_app.command()(verify)
app.add_typer(cache_app)
app.add_typer(pins_app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"reprise {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    _version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Cached answers of similar prompts, drafted for speculative decoding in vLLM."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line. Exit status 2, with one line, for bad input."""
    try:
        with leaving_on_sigterm():
            status = app(standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()
    except typer.Exit as request:
        sys.exit(request.exit_code)
    except typer.Abort:
        sys.exit(130)
    except ValueError as error:
        _refuse(str(error))
    except OSError as error:
        if sys.stdout is not None:  # the end of the process would write to it once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _refuse(str(error))
    except Exception as error:
        # Wrong options and arguments: typer's own exceptions, whose home differs by release.
        if not hasattr(error, "format_message"):
            raise
        _refuse(error.format_message())
    sys.exit(status if isinstance(status, int) else 0)


def _refuse(message: str) -> NoReturn:
    typer.echo(f"reprise: {message}", err=True)
    sys.exit(2)
