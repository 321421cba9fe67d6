"""What clients may ask, what is refused, and the walls that namespaces build."""

import itertools
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from reprise.engine_ext.request_control import (
    RequestControl,
    namespace_of,
    parse_control,
    without_control,
)
from reprise.retrieval.namespace import check_namespace


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
        {"reprise_cahce": "off"},
    ],
)
def test_nonsense_is_refused_by_name(asked: dict[str, Any]) -> None:
    with pytest.raises(VLLMValidationError):
        parse_control({}, asked)


def test_ours_do_not_reach_the_engine() -> None:
    assert without_control({"reprise_cache": "off", "bias": 2}) == {"bias": 2}
    assert without_control(None) == {}


def name(**given: Any) -> str:
    settings = {"operators": None, "clients": None, "client_namespaces": False}
    return namespace_of(**{**settings, "api_key": None, "cache_salt": None, **given})


def test_a_client_names_its_namespace_only_where_the_operator_allows_it() -> None:
    assert name(clients="mine", api_key="k") == name(api_key="k")
    assert name(clients="mine", api_key="k", client_namespaces=True) == "mine"
    assert name(clients="mine", client_namespaces=True, operators="all") == "all"


def test_keys_and_salts_build_separate_walls() -> None:
    keys = [None, "a", "b"]
    salts = [None, "x", "y", "long" * 40]
    names = [name(api_key=key, cache_salt=salt) for key, salt in itertools.product(keys, salts)]
    assert len(set(names)) == len(names)
    assert all(check_namespace(each) == each for each in names)
    assert name() == ""
    assert name(cache_salt="x") == "x"
    assert all("secret" not in each for each in [name(api_key="secret", cache_salt="x")])


def test_a_salt_that_breaks_the_rule_is_hashed() -> None:
    assert name(cache_salt="a/b").startswith("hash-")
    assert name(cache_salt="a/b") != name(cache_salt="a@b")
