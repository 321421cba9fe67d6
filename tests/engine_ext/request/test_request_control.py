"""What clients may ask, and what is refused."""

from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from reprise.engine_ext.request.request_control import (
    RequestControl,
    parse_control,
    without_control,
)


def test_silence_asks_for_nothing() -> None:
    assert parse_control({}, None) == RequestControl()
    assert parse_control({"accept": "*/*"}, {"other": 1}) == RequestControl()
    empty = ("cache", "drafts", "info", "max-draft", "ttl")
    assert parse_control({f"x-reprise-{name}": " " for name in empty}, None) == RequestControl()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("off", {"look_up": False, "store": False}),
        ("refresh", {"look_up": False, "store": True}),
        ("no-store", {"look_up": True, "store": False}),
        ("only-if-cached", {"only_if_cached": True}),
        ("only-if-cached, no-store", {"only_if_cached": True, "store": False}),
        ("", {}),
        (" , ", {}),
        # The words of HTTP's Cache-Control.
        ("no-cache", {"look_up": False}),
        ("No-Cache, no-store", {"look_up": False, "store": False}),
        ("max-age=0", {"look_up": False}),
        ("max-age=60", {"max_age_s": 60}),
        ("max-age=" + "9" * 5000, {"max_age_s": 1 << 31}),
        ('only-if-cached, max-age = "60", max-age=90', {"only_if_cached": True, "max_age_s": 60}),
    ],
)
def test_cache_words(value: str, expected: dict[str, Any]) -> None:
    assert parse_control({"x-reprise-cache": value}, None) == RequestControl(**expected)
    assert parse_control({}, {"reprise_cache": value}) == RequestControl(**expected)


def test_arguments_win_over_headers() -> None:
    headers = {"x-reprise-max-draft": "3", "x-reprise-drafts": "off"}
    control = parse_control(headers, {"reprise_max_draft": 7})
    assert control == RequestControl(max_draft=7, drafts=False)


def test_the_admin_token_is_no_control() -> None:
    """A client may send it with all that it sends: refused, the reply would show it."""
    headers = {"x-reprise-admin-token": "secret", "x-reprise-drafts": "off"}
    assert parse_control(headers, None) == RequestControl(drafts=False)


def test_every_other_wish() -> None:
    asked = {
        "reprise_ttl": 2.5,
        "reprise_namespace": "tenant",
        "reprise_drafts": 1,
        "reprise_max_draft": "0",
        "reprise_info": "on",
    }
    assert parse_control({}, asked) == RequestControl(
        ttl_s=2.5, namespace="tenant", drafts=True, max_draft=0, info=True
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"reprise_cache": "maybe"},
        {"reprise_cache": "off, only-if-cached"},
        {"reprise_cache": "only-if-cached, max-age=0"},
        {"reprise_cache": "max-age"},
        {"reprise_pin": "9" * 5000},
        {"reprise_namespace": "\ud800"},
        {"reprise_cache": "max-age=-1"},
        {"reprise_cache": "max-age=1.5"},
        {"reprise_cache": "no-cache=60"},
        {"reprise_drafts": "perhaps"},
        {"reprise_max_draft": -1},
        {"reprise_max_draft": "many"},
        {"reprise_ttl": 0},
        {"reprise_ttl": "nan"},
        {"reprise_ttl": "inf"},
        {"reprise_namespace": "a/b"},
        {"reprise_namespace": "x" * 129},
        {"reprise_namespace": 5},
        {"reprise_namespace": "key-" + "0" * 24},
        {"reprise_namespace": "salt-of-another"},
        {"reprise_cahce": "off"},
    ],
)
def test_nonsense_is_refused_by_name(asked: dict[str, Any]) -> None:
    with pytest.raises(VLLMValidationError):
        parse_control({}, asked)


def test_ours_do_not_reach_the_engine() -> None:
    assert without_control({"reprise_cache": "off", "bias": 2}) == {"bias": 2}
    assert without_control(None) == {}
