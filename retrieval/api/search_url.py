"""What the setting `retrieval.search` says: where to search what memory does not hold."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

EMBEDDED = "faiss"
"""Of the setting: what memory holds is searched, and nothing else."""
_SCHEMES = ("milvus", "milvus+tls")
_EXPECTED = (
    "faiss, milvus://[user:password@]host:port[/database], milvus+tls://... or milvus:///path.db "
    "(Milvus Lite)"
)
_DEFAULT_PORT = 19_530
_DATABASE = re.compile(r"[A-Za-z_]\w{0,254}", re.ASCII)
_LITE_ENDING = ".db"
_LITE = ("milvus_lite", "milvus-lite")


@dataclass(frozen=True, slots=True)
class MilvusUrl:
    """A Milvus, as pymilvus wants it named."""

    uri: str
    """http://host:port, https://host:port or the path of a Milvus Lite file."""
    token: str = field(default="", repr=False)
    """user:password; empty: none."""
    database: str = ""
    """Of the server; empty: its default one."""

    @property
    def is_lite(self) -> bool:
        """Whether it is Milvus Lite, which runs in the process that opens it."""
        return not self.uri.startswith(("http://", "https://"))


def parse_search(setting: str) -> MilvusUrl | None:
    """Return the Milvus that the setting names; None for `faiss`. Opens nothing.

    Raises:
        ValueError: It is neither, or pymilvus is missing; says what was expected, without secrets.
    """
    if setting == EMBEDDED:
        return None
    scheme, separator, rest = setting.partition("://")
    if scheme not in _SCHEMES or not separator:
        raise ValueError(f"search must be {_EXPECTED}; got {_shown(setting)!r}")
    url = _lite(rest) if rest.startswith("/") and scheme == "milvus" else _server(setting)
    for module, package in (("pymilvus", "pymilvus"), *([_LITE] if url.is_lite else ())):
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"{scheme}:// needs {package}: pip install 'reprise[milvus]'")
    return url


def _lite(path: str) -> MilvusUrl:
    """Return a Milvus Lite file.

    Raises:
        ValueError: pymilvus would not take it for one.
    """
    plain = Path("/" + path.lstrip("/"))
    if plain.suffix != _LITE_ENDING or not plain.stem:
        shown = _shown(f"milvus://{path}")  # a slash too many makes a server's password part of it
        raise ValueError(f"a Milvus Lite file must end in {_LITE_ENDING}, got {shown!r}")
    return MilvusUrl(str(plain))


def _server(setting: str) -> MilvusUrl:
    """Return a server.

    Raises:
        ValueError: It is not clear which host is meant.
    """
    try:
        parts = urlsplit(setting)
        host, port = parts.hostname, parts.port or _DEFAULT_PORT
        unclear = not host or parts.netloc.count("@") > 1 or bool(parts.query or parts.fragment)
    except ValueError:
        unclear = True
    database = "" if unclear else parts.path.strip("/")
    if unclear or (database and not _DATABASE.fullmatch(database)):
        raise ValueError(f"search must be {_EXPECTED}; got {_shown(setting)!r}")
    scheme = "https" if parts.scheme == "milvus+tls" else "http"
    shown_host = f"[{host}]" if ":" in str(host) else host
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    token = f"{user}:{password}" if user or password else ""
    return MilvusUrl(f"{scheme}://{shown_host}:{port}", token, database)


def _shown(setting: str) -> str:
    """Return the setting without what may be a password."""
    scheme, separator, rest = setting.partition("://")
    if not separator:  # a slash too few, or no scheme
        return "***" if "@" in setting else setting
    return f"{scheme}{separator}***" if "@" in rest else setting
