"""The commands `reprise pins ...`: the prefixes that a server has pinned."""

import http.client
import json
from collections.abc import Sequence
from typing import Annotated, Any
from urllib import error as url_error
from urllib import parse, request

import typer

from reprise.engine_ext.core.serving_config import check_admin_token

app = typer.Typer(name="pins", help="List, add and remove the pinned prefixes of a server.")

_TIMEOUT_S = 600.0
_COLUMNS = ("pin_id", "namespace", "origin", "state", "tokens", "requests", "hit_tokens")

Url = Annotated[str, typer.Option(help="The server's address.")]
Token = Annotated[
    str | None,
    typer.Option(help="The admin token.", envvar="REPRISE_SERVING__ADMIN_TOKEN", show_envvar=True),
]
_HERE = "http://127.0.0.1:8000"


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_(url: Url = _HERE, admin_token: Token = None) -> None:
    """List what is pinned, what is worth most first.

    Example: reprise pins list --url http://127.0.0.1:8000
    """
    found = _call("GET", url, admin_token, wanted=("pins", "stats"))
    rows = [[str(pin[name]) for name in _COLUMNS] for pin in found["pins"]]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    for pin, row in zip([None, *found["pins"]], [_COLUMNS, *rows], strict=True):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(f"{line}  {json.dumps(pin['begins_with'][:40]) if pin else 'begins with'}")
    for stats in filter(None, found["stats"]):
        typer.echo(
            f"{stats['pins']} prefixes in {stats['pinned_blocks']} of {stats['max_blocks']} blocks"
            f"; {stats['hit_tokens']} tokens found, {stats['saved_tokens']} of them kept by pins."
        )


@app.command("add")
def add(
    prompt: Annotated[str, typer.Argument(help="Text, or @FILE.")],
    url: Url = _HERE,
    admin_token: Token = None,
    namespace: Annotated[str | None, typer.Option(help="Whose requests it is for.")] = None,
    cache_salt: Annotated[str | None, typer.Option(help="The salt of these requests.")] = None,
) -> None:
    """Have the server compute a prefix and pin it.

    Example: reprise pins add @system_prompt.txt
    """
    if prompt.startswith("@"):
        try:
            with open(prompt[1:], encoding="utf-8") as file:
                prompt = file.read()
        except OSError as error:
            raise ValueError(f"cannot read {prompt[1:]}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{prompt[1:]} is no text in UTF-8") from None
    body = {"prompt": prompt, "namespace": namespace, "cache_salt": cache_salt}
    found = _call("POST", url, admin_token, body=body, wanted=("tokens",))
    typer.echo(f"{found['tokens']} tokens computed; full blocks of them are pinned.")


@app.command("remove")
def remove(
    pin_id: Annotated[str, typer.Argument(help="As listed, or `all`.")],
    url: Url = _HERE,
    admin_token: Token = None,
) -> None:
    """Unpin a prefix, or all. What requests share is pinned again in time.

    Example: reprise pins remove all
    """
    given = {"everything": "true"} if pin_id == "all" else {"pin_id": pin_id}
    found = _call("DELETE", url, admin_token, query=given, wanted=("removed",))
    typer.echo(f"{found['removed']} removed")


def _call(
    method: str,
    url: str,
    admin_token: str | None,
    *,
    body: Any = None,
    query: dict[str, str] | None = None,
    wanted: Sequence[str],
) -> Any:
    """Return what the server replies: an object that has what is `wanted`.

    Raises:
        ValueError: it cannot be reached, refuses, or is none of ours.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"--url must begin with http:// or https://, got {url}")
    address = f"{url.rstrip('/')}/reprise/pins" + (f"?{parse.urlencode(query)}" if query else "")
    headers = {"content-type": "application/json"}
    if admin_token:
        headers["x-reprise-admin-token"] = check_admin_token(admin_token)
    data = None if body is None else json.dumps(body).encode()
    asked = request.Request(address, data, headers, method=method)
    try:
        with request.urlopen(asked, timeout=_TIMEOUT_S) as reply:
            said = reply.read()
    except url_error.HTTPError as error:
        raise ValueError(f"{address}: {error.code}: {_detail(error.read())}") from None
    except http.client.InvalidURL as error:
        raise ValueError(f"--url {url}: {error}") from None
    except OSError as error:
        raise ValueError(f"{address}: {getattr(error, 'reason', error)}") from None
    except http.client.HTTPException as error:
        raise ValueError(f"{address}: no whole HTTP reply ({type(error).__name__})") from None
    try:
        found = json.loads(said)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() >= set(wanted):
        raise ValueError(f"{address}: what replies is no server of Reprise")
    return found


def _detail(reply: bytes) -> str:
    """Return what a refusal says: in vLLM's form of it, or in FastAPI's."""
    try:
        said = json.loads(reply)
        return str(said["error"]["message"] if "error" in said else said["detail"])
    except (ValueError, KeyError, TypeError):
        return reply[:200].decode(errors="replace")
