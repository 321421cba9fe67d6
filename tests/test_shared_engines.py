"""What tests share ends with the last test that uses it."""

from collections import Counter
from typing import Any

import pytest


@pytest.fixture
def own(shared: Any) -> Any:
    """Shared by three tests, two of which use `a` and two `b`."""
    return type(shared)(Counter(a=2, b=2))


def test_it_starts_once_and_ends_after_the_last(own: Any) -> None:
    started: list[str] = []
    ended: list[str] = []

    def get(name: str) -> str:
        def build() -> str:
            started.append(name)
            return name.upper()

        return str(own.get(name, build, ended.append))

    assert [get("a"), get("b"), get("a")] == ["A", "B", "A"]
    assert started == ["a", "b"]
    own.end_use({"a"})
    own.end_use({"b"})
    assert not ended
    assert own.has_users("a")
    own.end_use({"a"})
    assert ended == ["A"]
    assert not own.has_users("a")
    own.end_all()
    own.end_all()
    assert ended == ["A", "B"]


def test_what_ends_and_is_asked_for_again_starts_again(own: Any) -> None:
    ended: list[int] = []
    assert own.get("b", lambda: 1, ended.append) == 1
    own.end_use({"b"})
    own.end_use({"b"})
    assert own.get("b", lambda: 2, ended.append) == 2
    own.end_all()
    assert ended == [1, 2]
