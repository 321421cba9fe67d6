"""A request that asks for it is recorded step by step; no other is, and no reply tells of it."""

from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.core.request_hints import RequestHints
from reprise.engine_ext.request import request_info
from reprise.engine_ext.request.request_info import DraftCounts, DraftCountsStore, counts_id
from reprise.spec.api.recorded_steps import DraftedToken, RecordedRequest, RecordedStep
from reprise.tests.engine_ext.worker.proposer_world import World

RECORD = RequestHints(namespace="n", counts_nonce="c", record=True)


def record_of(counts: dict[str, Any]) -> RecordedRequest:
    return msgspec.convert(counts["record"], RecordedRequest)


@pytest.mark.engine
def test_steps_are_those_that_the_counters_have(world: World) -> None:
    world.step(new=("a", "b"), hints=RECORD)
    for _ in range(12):
        world.step()
    said = {name: list(outputs) for name, outputs in world.outputs.items()}
    live = world.proposer._provider.stats()
    world.step(finished=("a", "b"))
    counts = world.proposer.take_draft_counts([counts_id("c", name) for name in "ab"])
    steps = [step for each in counts.values() for step in record_of(each).steps]
    assert sum(step.num_emitted for step in steps) == sum(map(len, said.values())) - len(said)
    assert sum(step.num_accepted for step in steps) == live.accepted > 0
    assert len(steps) == live.steps
    # Of each step the song's next tokens were accepted, from its context.
    accepted = [token for step in steps for token in step.draft[: step.num_accepted]]
    assert {token.source for token in accepted} <= {"context", "corpus"}
    assert {token.token_id for token in accepted} <= set(said["a"])
    assert world.errors == {}


@pytest.mark.engine
def test_a_draft_that_went_with_a_preempted_request_is_not_counted(world: World) -> None:
    drafts: dict[str, Any] = {}
    while not drafts.get("a"):
        drafts = world.step(new=() if drafts else ("a",), hints=RECORD)
    before = world.proposer._provider.stats()
    world.step(resumed=("a",))
    after = world.proposer._provider.stats()
    assert after.emitted == before.emitted + 2
    assert (after.drafted, after.accepted) == (before.drafted, before.accepted)
    world.step(finished=("a",))
    (counts,) = world.proposer.take_draft_counts([counts_id("c", "a")]).values()
    steps = record_of(counts).steps
    assert sum(step.num_accepted for step in steps) == after.accepted
    assert sum(len(step.draft) for step in steps) == after.drafted
    assert world.errors == {}


@pytest.mark.engine
def test_who_does_not_ask_is_not_recorded(world: World) -> None:
    world.step(new=("a",), hints=RequestHints(namespace="n", counts_nonce="c"))
    world.step(new=("b",), hints=RequestHints(namespace="n"))
    for _ in range(6):
        world.step()
    assert [live.recorder for live in world.proposer._live.values()] == [None, None]
    world.step(finished=("a", "b"))
    counts = world.proposer.take_draft_counts([counts_id("c", name) for name in "ab"])
    assert set(counts) == {counts_id("c", "a")}
    assert "record" not in counts[counts_id("c", "a")]


@pytest.mark.engine
def test_what_nobody_fetched_is_not_for_the_next_request_of_that_id(world: World) -> None:
    world.step(new=("a",), hints=RECORD)
    for _ in range(6):
        world.step()
    world.step(finished=("a",), new=("a",), hints=RequestHints(namespace="m", counts_nonce="d"))
    assert world.proposer.take_draft_counts([counts_id("d", "a"), "a"]) == {}
    world.step(finished=("a",))
    (own,) = world.proposer.take_draft_counts([counts_id("d", "a")]).values()
    assert "record" not in own
    (kept,) = world.proposer.take_draft_counts([counts_id("c", "a")]).values()
    assert kept["steps"] > own["steps"]
    assert record_of(kept).steps


@pytest.mark.engine
def test_what_fails_of_it_costs_no_draft(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: str) -> Any:
        raise ValueError("not now")

    monkeypatch.setattr(world.proposer._provider, "drafted_tokens", failing)
    world.step(new=("a",), hints=RECORD)
    drafts = {}
    for _ in range(12):
        drafts = world.step()
    assert drafts["a"]
    assert set(world.errors) == {"record"}


def test_steps_that_nobody_fetches_are_dropped_before_the_counts() -> None:
    store = DraftCountsStore()
    names = [f"r{number}" for number in range(request_info._MAX_RECORDED + 3)]
    for name in names:
        store.put(name, None, RecordedRequest([RecordedStep(1, 0)]))
    store.put("plain", None)
    counts = store.take([*names, "plain"])
    assert set(counts) == {*names, "plain"}
    assert ["record" in counts[name] for name in names] == [False] * 3 + [True] * (len(names) - 3)


def test_a_reply_has_the_counts_alone() -> None:
    store = DraftCountsStore()
    step = RecordedStep(2, 1, [DraftedToken(7, "context")])
    store.put("a", None, RecordedRequest([step]))
    counts = store.take(["a"])["a"]
    assert record_of(counts).steps == [step]
    told = msgspec.to_builtins(msgspec.convert(counts, DraftCounts))
    assert told == {"steps": 0, "by_source": {}}
