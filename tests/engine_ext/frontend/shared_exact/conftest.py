"""Replicas on one tier, whose fingerprints are as a test says."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from reprise.tests.engine_ext.frontend.shared_exact.replica import MakeReplica


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a tier on disk, and of one in Redis."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis_server").url)
    return f"sqlite:///{tmp_path}/answers.sqlite"


@pytest.fixture
def fingerprints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the next replicas' fingerprints are; the last one is that of all others."""
    from reprise.engine_ext.frontend import shared_exact

    named = ["f"]

    def take(*_: Any, **__: Any) -> str:
        return named.pop(0) if len(named) > 1 else named[0]

    monkeypatch.setattr(shared_exact, "fingerprint_of", take)
    monkeypatch.setattr(shared_exact, "_TIER_TIMEOUT_S", 30.0)
    return named


@pytest.fixture
def make_replica(fingerprints: list[str]) -> Iterator["MakeReplica"]:
    from reprise.tests.engine_ext.frontend.shared_exact.replica import Replica

    assert fingerprints
    made = []

    def make(url: str, **settings: Any) -> Replica:
        made.append(Replica(url, **settings))
        return made[-1]

    yield make
    for replica in made:
        replica.close()
