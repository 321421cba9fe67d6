"""One HTML document that needs nothing beside itself, and may do nothing but what it is for."""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
# What would end a document, turn its reading direction, or is no character at all.
_CONTROLS = {
    **dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160)], "\ufffd"),
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
    13: "",
}


def escaped(text: str, most: int | None = None) -> str:
    """Return text as it may stand in HTML and in quoted attributes, cut to `most` characters."""
    if most is not None and len(text) > most:
        text = text[:most].rstrip() + " …"
    return html.escape(text.translate(_CONTROLS))


@cache
def _style(name: str) -> str:
    return (_FOLDER / f"{name}.css").read_text(encoding="utf-8")


@cache
def answers_script() -> str:
    """The script, as it stands in the page."""
    return (_FOLDER / "answers.js").read_text(encoding="utf-8")


def _content_policy(*, has_script: bool) -> str:
    """What a browser is to allow the page: its own style, and the script of answers and no other.

    So even text that were taken for markup could neither run nor fetch anything.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    if has_script:
        digest = hashlib.sha256(answers_script().encode()).digest()
        policy += f"; script-src 'sha256-{base64.b64encode(digest).decode()}'"
    return f'<meta http-equiv=Content-Security-Policy content="{policy}">'


def document(title: str, body: str, *, has_answers: bool) -> str:
    """Return the whole page.

    Args:
        title: text.
        body: HTML.
        has_answers: it has `answers_section`, with its style and its script.
    """
    style = _style("page") + (_style("answers") if has_answers else "")
    return (
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"{_content_policy(has_script=has_answers)}\n<title>{escaped(title)}</title>\n"
        f"<style>{style}</style>\n<main>\n{body}\n</main>\n</html>\n"
    )
