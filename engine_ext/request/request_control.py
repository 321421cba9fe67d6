"""Parses what a client asks of the cache for one request, in headers or in `vllm_xargs`.

| header | `vllm_xargs` | values |
| --- | --- | --- |
| `x-reprise-cache` | `reprise_cache` | words by commas, see below |
| `x-reprise-drafts` | `reprise_drafts` | `on`, `off` |
| `x-reprise-max-draft` | `reprise_max_draft` | maximum of tokens drafted in a step, 0 or more |
| `x-reprise-pin` | `reprise_pin` | `on`, `off`, or how many tokens of the prompt to pin |
| `x-reprise-info` | `reprise_info` | `on`, `off`: report this request's drafts and retrieval |
| `x-reprise-record` | `reprise_record` | `on`, `off`: keep its steps for `/reprise/view` |
| `x-reprise-namespace` | `reprise_namespace` | honoured where the operator allows it |
| `x-reprise-ttl` | `reprise_ttl` | seconds for which the answer may be an exact hit |

`vllm_xargs` win over headers. The words for the cache are `off`, `refresh`, and those of HTTP's
`Cache-Control`, which mean what they mean there: `no-cache`, `no-store`, `max-age=SECONDS` and
`only-if-cached`. An empty header asks for nothing.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from reprise.engine_ext.request.tenants import RESERVED_PREFIXES
from reprise.engine_ext.request.tenants import key_namespace as key_namespace
from reprise.retrieval.api.namespace import check_namespace

HEADER_PREFIX = "x-reprise-"
ADMIN_TOKEN_HEADER = f"{HEADER_PREFIX}admin-token"
"""No control: whoever sends it with each request is not to be told so, nor shown it."""
XARGS_PREFIX = "reprise_"

_CACHE_WORDS = frozenset({"off", "refresh", "only-if-cached", "no-store", "no-cache"})
# Words that forbid a look-up.
_LOOK_NOTHING_UP = frozenset({"off", "refresh", "no-cache"})
_MAX_AGE = "max-age"
_ON = frozenset({"on", "true", "1", "yes"})
_OFF = frozenset({"off", "false", "0", "no"})
_WHOLE_PROMPT = 1 << 30
_MAX_AGE_S = 1 << 31  # what HTTP takes longer ages for


class RequestControl(msgspec.Struct, frozen=True):
    """What one request asks for; the defaults are those of a request that says nothing."""

    look_up: bool = True
    """Whether an exact hit may answer it."""
    store: bool = True
    """Whether its answer is stored in the cache."""
    only_if_cached: bool = False
    """Refuse (504) rather than generate."""
    max_age_s: float | None = None
    """Age up to which an answer may be an exact hit; None: any."""
    drafts: bool = True
    """Whether drafts may speed it up."""
    max_draft: int | None = None
    """Maximum of tokens drafted in a step; None: the engine's bound."""
    pin_tokens: int | None = None
    """Leading tokens of the prompt to be pinned; 0: none, whoever else wants it; None: it does not
    say."""
    info: bool = False
    """Whether the reply reports its drafts and retrieval."""
    record: bool = False
    """Whether its steps are kept, to be shown."""
    namespace: str | None = None
    """The namespace that it names."""
    ttl_s: float | None = None
    """Time to live of its answer as an exact hit."""


class NotCachedError(GracefulHTTPError):  # type: ignore[misc]
    """Raised if a request may only be answered from the cache, which has no answer."""

    def __init__(self) -> None:
        super().__init__(
            "no cached answer, and the request asked for only-if-cached",
            HTTPStatus.GATEWAY_TIMEOUT,
        )


def parse_control(headers: Mapping[str, str], xargs: Mapping[str, Any] | None) -> RequestControl:
    """Return what headers (names in lower case) and `vllm_xargs` together ask for.

    Raises:
        VLLMValidationError: an invalid value, or an unknown name; vLLM answers the request with
            400.
    """
    given = {
        name.removeprefix(HEADER_PREFIX): value
        for name, value in headers.items()
        if name.startswith(HEADER_PREFIX) and name != ADMIN_TOKEN_HEADER
    }
    for name, value in (xargs or {}).items():
        if name.startswith(XARGS_PREFIX):
            given[name.removeprefix(XARGS_PREFIX).replace("_", "-")] = value
    if not given:
        return _NOTHING_ASKED
    fields: dict[str, Any] = {}
    for name, value in given.items():
        parse = _PARSERS.get(name)
        if parse is None:
            raise _invalid(name, "one of " + ", ".join(_PARSERS), value)
        # An empty header asks for nothing; the empty namespace is one.
        if name != "namespace" and isinstance(value, str) and not value.strip():
            continue
        fields.update(parse(name, value))
    return RequestControl(**fields)


def wants_info(headers: Mapping[str, str], xargs: Mapping[str, Any] | None) -> bool:
    """Return whether the client asks for its request's information; invalid values do not."""
    given = (xargs or {}).get(XARGS_PREFIX + "info", headers.get(HEADER_PREFIX + "info", "off"))
    return str(given).strip().lower() in _ON


def wants_record(headers: Mapping[str, str], xargs: Mapping[str, Any] | None) -> bool:
    """Return whether the client asks for its request's steps to be kept; invalid values do not."""
    given = (xargs or {}).get(XARGS_PREFIX + "record", headers.get(HEADER_PREFIX + "record", "off"))
    return str(given).strip().lower() in _ON


def without_control(xargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the other `vllm_xargs`: the engine must not see ours."""
    return {
        name: value for name, value in (xargs or {}).items() if not name.startswith(XARGS_PREFIX)
    }


def _parse_cache(name: str, value: Any) -> dict[str, Any]:
    words = {word.strip().lower() for word in str(value).split(",")} - {""}
    ages_s = [_parse_age(word) for word in words if word.split("=", 1)[0].strip() == _MAX_AGE]
    words = {word for word in words if word.split("=", 1)[0].strip() != _MAX_AGE}
    if None in ages_s or not words <= _CACHE_WORDS:
        known = ", ".join([*sorted(_CACHE_WORDS), f"{_MAX_AGE}=SECONDS"])
        raise _invalid(name, f"of {known} by commas", value)
    max_age_s = min((age_s for age_s in ages_s if age_s is not None), default=None)
    look_up = words.isdisjoint(_LOOK_NOTHING_UP) and max_age_s != 0
    if "only-if-cached" in words and not look_up:
        raise _invalid(name, "no look-up excluded by another word", value)
    return {
        "look_up": look_up,
        "store": words.isdisjoint({"off", "no-store"}),
        "only_if_cached": "only-if-cached" in words,
        "max_age_s": max_age_s or None,
    }


def _parse_age(word: str) -> int | None:
    """Return the seconds of `max-age=SECONDS`; None: there are none."""
    seconds = word.partition("=")[2].strip().strip('"')
    return _whole_number(seconds, most=_MAX_AGE_S)


def _whole_number(text: str, *, most: int) -> int | None:
    """Return a number, `most` for whatever is larger, however long; None: it is none."""
    if not (text.isascii() and text.isdecimal()):
        return None
    digits = text.lstrip("0") or "0"
    return most if len(digits) > len(str(most)) else min(int(digits), most)


def _parse_drafts(name: str, value: Any) -> dict[str, Any]:
    return {"drafts": _switch(name, value)}


def _parse_info(name: str, value: Any) -> dict[str, Any]:
    return {"info": _switch(name, value)}


def _parse_record(name: str, value: Any) -> dict[str, Any]:
    return {"record": _switch(name, value)}


def _switch(name: str, value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in _ON | _OFF:
        raise _invalid(name, "on or off", value)
    return word in _ON


def _parse_max_draft(name: str, value: Any) -> dict[str, Any]:
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if not 0 <= number <= 1 << 20:
        raise _invalid(name, "a whole number, 0 or more", value)
    return {"max_draft": number}


def _parse_pin(name: str, value: Any) -> dict[str, Any]:
    word = str(value).strip().lower()
    if word in ("on", "true", "yes"):
        return {"pin_tokens": _WHOLE_PROMPT}
    if word in ("off", "false", "no"):
        return {"pin_tokens": 0}
    number = _whole_number(word, most=_WHOLE_PROMPT + 1)
    if number is None or number > _WHOLE_PROMPT:
        raise _invalid(name, "on, off or a number of tokens", value)
    return {"pin_tokens": number}


def _parse_ttl(name: str, value: Any) -> dict[str, Any]:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise _invalid(name, "seconds above 0", value)
    return {"ttl_s": seconds}


def _parse_namespace(name: str, value: Any) -> dict[str, Any]:
    try:
        named = check_namespace(value)
    except ValueError as error:
        raise VLLMValidationError(str(error), parameter=HEADER_PREFIX + name) from None
    if named.startswith(RESERVED_PREFIXES):
        expected = "a name that does not begin with " + ", ".join(RESERVED_PREFIXES)
        raise _invalid(name, expected, value)
    return {"namespace": named}


_PARSERS = {
    "cache": _parse_cache,
    "drafts": _parse_drafts,
    "info": _parse_info,
    "max-draft": _parse_max_draft,
    "namespace": _parse_namespace,
    "pin": _parse_pin,
    "record": _parse_record,
    "ttl": _parse_ttl,
}

_NOTHING_ASKED = RequestControl()


def _invalid(name: str, expected: str, value: Any) -> VLLMValidationError:
    return VLLMValidationError(
        f"{HEADER_PREFIX}{name} ({XARGS_PREFIX}{name.replace('-', '_')}) must be {expected}",
        parameter=name,
        value=value,
    )
