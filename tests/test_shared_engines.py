"""What tests share ends with the last test that uses it, and they stay together for it."""

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


@pytest.mark.parametrize(
    ("file", "test", "group"),
    [
        ("test_losslessness.py", "test_stops_lengths_and_seeds_are_identical", "engines"),
        (
            "scheduling/test_async_engines.py",
            "test_answers_end_where_the_model_does[run]",
            "engines",
        ),
        (
            "scheduling/test_async_engines.py",
            "test_preempted_and_chunked_requests_are_answered_alike",
            "",
        ),
        (
            "frontend/test_serving_load.py",
            "test_memory_is_flat_under_load_and_nothing_is_left_after_shutdown",
            "",
        ),
        ("frontend/test_serving.py", "test_the_openai_client", "servers"),
        ("../spec/predictor/test_choice.py", "test_features_of_candidates", "predictions"),
        ("request/test_tenant_matrix.py", "test_nothing_crosses[on: one to another]", "servers"),
    ],
)
def test_who_shares_stays_together(
    file: str, test: str, group: str, request: pytest.FixtureRequest
) -> None:
    path = f"tests/engine_ext/{file}"
    plugins = request.config.pluginmanager.get_plugins()
    (conftest,) = {plugin for plugin in plugins if hasattr(plugin, "group_of")}
    assert test.partition("[")[0] in conftest._used_by(path)
    assert conftest.group_of(f"{path}::{test}") == (group or path)


def test_engines_of_several_processes_compute_on_different_cores(
    request: pytest.FixtureRequest,
) -> None:
    (conftest,) = {p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "core_of")}
    assert [conftest.core_of(f"gw{n}", [2, 5]) for n in range(3)] == [2, 5, 2]
