"""What fails for one request costs that request its drafts, and no other anything."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext import proposer as proposer_module
from reprise.tests.engine_ext.worker import proposer_world
from reprise.tests.engine_ext.worker.proposer_world import PROMPT, SONG, World

pytestmark = pytest.mark.engine


def fails_for(function: Any, name: str) -> Any:
    def failing(request_id: Any, *args: Any, **kwargs: Any) -> Any:
        if request_id == name:
            raise ValueError(f"failed for {name}")
        return function(request_id, *args, **kwargs)

    return failing


def sing(world: World, steps: int = 12) -> dict[str, Any]:
    drafts = {}
    for _ in range(steps):
        drafts = world.step()
    return drafts


def test_nothing_fails_where_nothing_is_broken(world: World) -> None:
    world.step(new=("a", "b", "c"))
    drafts = sing(world)
    assert all(drafts.values()), "nothing is drafted: the tests could not fail"
    world.step(finished=("a", "b", "c"))
    assert (world.errors, world.proposer._live) == ({}, {})


@pytest.mark.parametrize("broken", ["provider.start", "near.attach_first"])
def test_one_that_cannot_start_gets_no_drafts_and_the_others_miss_nothing(
    world: World, broken: str
) -> None:
    part, method = broken.split(".")
    owner = getattr(world.proposer, f"_{part}")
    setattr(owner, method, fails_for(getattr(owner, method), "bad"))
    world.step(new=("a", "bad", "c"))
    drafts = sing(world)
    assert {name for name, draft in drafts.items() if draft} == {"a", "c"}
    assert world.observed["a"] == world.outputs["a"]
    assert world.observed["c"] == world.outputs["c"]
    assert not world.observed["bad"]
    world.step(new=("d",), finished=("a", "bad"))
    assert set(world.proposer._live) == {"c", "d"}
    assert world.errors == {"start request": 1}


def test_what_the_model_cannot_look_up_is_not_drafted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt has such tokens where an image is, and looking one up would end the engine."""
    size = world.proposer._vocabulary_size
    monkeypatch.setattr(proposer_world, "PROMPT", [*SONG[:4], size, size + 5, *SONG[6:]])
    world.step(new=("a",))
    drafts = [world.step()["a"] for _ in range(8)]
    assert any(drafts), "nothing is drafted: the test could not fail"
    assert max(token for draft in drafts for token in draft) < size


def test_one_that_cannot_end_takes_no_other_along(world: World) -> None:
    world.step(new=("a", "bad", "c", "d"))
    sing(world)
    provider = world.proposer._provider
    finish, provider.finish = provider.finish, fails_for(provider.finish, "bad")
    world.step(finished=("a", "bad", "c"))
    provider.finish = finish
    assert set(world.proposer._live) == {"d"}
    assert world.errors == {"end request": 1}
    assert all(sing(world, 2).values())
    # Its id may come again.
    world.step(new=("bad",))
    assert sing(world, 8)["bad"]


@pytest.mark.parametrize("broken", ["submit", "poll", "progress", "discard", "record_usage"])
def test_without_retrieval_there_are_drafts_all_the_same(
    world: World, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise OSError("retrieval is gone")

    monkeypatch.setattr(world.proposer._near._retriever, broken, failing)
    world.step(new=("a", "b"))
    assert all(sing(world).values())
    assert world.observed["a"] == world.outputs["a"]
    world.step(finished=("a", "b"))
    assert not world.proposer._live
    assert set(world.errors) <= {"near answers"}


def test_a_step_whose_rows_are_unknown_leaves_no_hole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is drafted after it, above all not by the rows of the step before."""

    def failing(*_: Any) -> None:
        raise ValueError("no rows")

    world.step(new=("a", "b"))
    sing(world)
    with monkeypatch.context() as context:
        context.setattr(world.proposer._rows, "name_rows", failing)
        assert not any(world.step().values())
    assert world.errors == {"before_propose": 1}
    assert all(sing(world, 2).values())
    assert world.observed["a"] == world.outputs["a"]


def test_a_row_that_cannot_be_read_leaves_no_hole_in_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.step(new=("a", "b"))
    sing(world)
    rows = world.proposer._rows
    seen = dict(rows._num_seen)
    with monkeypatch.context() as context:
        context.setattr(proposer_module.TrackedRow, "__new__", failing_second())
        assert not any(world.step().values())
    assert rows._num_seen == seen
    assert world.errors == {"propose": 1}
    assert all(sing(world, 2).values())
    assert world.observed["a"] == world.outputs["a"]
    assert world.observed["b"] == world.outputs["b"]


def failing_second() -> Any:
    new = proposer_module.TrackedRow.__new__
    made: list[Any] = []

    def make(*args: Any) -> Any:
        made.append(args)
        if len(made) == 2:
            raise ValueError("cannot be read")
        return new(*args)

    return make


def test_an_arrival_that_makes_no_sense_is_counted(world: World) -> None:
    world.proposer.on_arrival(SimpleNamespace(request_id="odd"))
    world.proposer.on_arrival(SimpleNamespace())
    assert world.errors == {"on_arrival": 2}
    world.step(new=("a",))
    assert all(sing(world).values())


def test_one_update_that_fails_takes_no_other_along(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told once; the thread that takes them in goes on."""
    provider = world.proposer._provider
    failing = fails_for(provider.add_answer, "bad")
    monkeypatch.setattr(provider, "add_answer", failing)
    from reprise.retrieval import Answer
    from reprise.retrieval.api.answer import AnswerUpdate

    answers = [
        Answer.create(
            answer_id=name, namespace="n", prompt_token_ids=PROMPT, response_token_ids=SONG
        )
        for name in ("a", "bad", "c")
    ]
    told = [[AnswerUpdate.addition(answer) for answer in answers]]
    monkeypatch.setattr(
        world.proposer._learner._retriever, "updates", lambda: told.pop() if told else []
    )
    assert world.proposer.flush(100.0)
    assert provider.stats().answers == 2
    assert world.errors == {"learn": 1}
