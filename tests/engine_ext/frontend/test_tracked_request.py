"""A request that the engine generates for: what it reports, and what it releases."""

import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from reprise.engine_ext.frontend.tracked_request import TrackedRequest
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy


class Seen:
    """Near answers, metrics and spans in one: what is called, in its order."""

    def __init__(self, found_s: float | None) -> None:
        self.calls: list[Any] = []
        self.kinds: Counter[str] = Counter()
        self._found_s = found_s

    are_warming = False

    def nearest(self, search_id: str, namespace: str) -> tuple[str, float | None]:
        return ("miss", None) if self.are_warming else (f"{search_id} in {namespace}", 0.8)

    def clauses(self, search_id: str) -> list[str]:
        return [f"a clause of {search_id}"]

    def found_s(self, _search_id: str) -> float | None:
        return self._found_s

    def near_answers(self, kind: str) -> None:
        self.calls.append(("counted", kind))

    def retrieval(self, headers: Any, *, kind: str, begun_s: float, found_s: float | None) -> None:
        assert begun_s <= time.monotonic()
        self.calls.append(("span", headers, kind, found_s))

    def end(self, search_id: str) -> None:
        self.calls.append(("released", search_id))

    def on_answer(self, tracked: TrackedRequest, finished: Any) -> None:
        self.calls.append((tracked.prompt_token_ids, finished))


def track(seen: Seen, *, has_retrieval: bool = True) -> TrackedRequest:
    request: Any = SimpleNamespace(
        sampling_params=None,
        request_id="r",
        lora_request=None,
        trace_headers={"traceparent": "x"},
        prompt_token_ids=[1, 2],
    )
    return TrackedRequest(
        request,
        RequestPolicy(RequestControl(), "acme"),
        weights="3",
        weight_version="w",
        near_answers=seen if has_retrieval else None,  # type: ignore[arg-type]
        metrics=seen,  # type: ignore[arg-type]
        spans=seen,  # type: ignore[arg-type]
        on_answer=seen.on_answer,
    )


def test_a_miss_while_the_embedding_model_is_loaded_says_so() -> None:
    seen = Seen(None)
    seen.are_warming = True
    tracked = track(seen)
    tracked.search_id = "search"
    tracked.on_first_token()
    assert (tracked.kind, tracked.reason) == ("miss", "warming")
    sampled = track(seen)
    sampled.search_id, sampled.reason = "search", "sampled"
    sampled.on_first_token()
    assert sampled.clauses() == ["a clause of search"]
    assert track(seen, has_retrieval=False).clauses() == []
    assert sampled.reason == "sampled"  # that holds however long it waits


def test_its_near_answers_are_counted_at_the_first_token_and_released_at_the_end() -> None:
    found_s = time.monotonic() + 60.0
    seen = Seen(found_s)
    before_s = time.monotonic()
    tracked = track(seen)
    after_s = time.monotonic()
    tracked.search_id = "search"
    assert tracked.kind == "miss"
    tracked.on_first_token()
    assert (tracked.kind, tracked.similarity) == ("search in acme", 0.8)
    retrieval_ms = tracked.retrieval_ms()
    assert retrieval_ms is not None
    assert 1e3 * (found_s - after_s) <= retrieval_ms <= 1e3 * (found_s - before_s)
    tracked.on_finish("answer")  # type: ignore[arg-type]
    tracked.on_end()
    assert seen.calls == [
        ("counted", "search in acme"),
        ([1, 2], "answer"),
        ("span", {"traceparent": "x"}, "search in acme", found_s),
        ("released", "search"),
    ]


@pytest.mark.parametrize(("has_retrieval", "search_id"), [(True, None), (False, "search")])
def test_where_nothing_is_searched_for_nothing_is_released(
    has_retrieval: bool, search_id: str | None
) -> None:
    seen = Seen(1.0)
    tracked = track(seen, has_retrieval=has_retrieval)
    tracked.search_id = search_id
    tracked.on_first_token()
    tracked.on_end()
    assert (tracked.kind, tracked.retrieval_ms(), seen.calls) == ("miss", None, [])


def test_a_search_that_has_not_ended_has_no_time() -> None:
    tracked = track(Seen(None))
    tracked.search_id = "search"
    assert tracked.retrieval_ms() is None
