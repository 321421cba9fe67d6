"""What fails for one request costs that request its drafts, and no other anything."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams

from reprise.engine_ext import proposer as proposer_module
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.retrieval import RetrievalConfig
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder

pytestmark = pytest.mark.engine

PROMPT = [5, 6, 7, 8, 9]
SONG = [11, 12, 13, 14, 15, 16, 17, 18]  # sung again and again: what comes next is known


@pytest.fixture(scope="module")
def vllm_config(demo_model: Path) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        model=str(demo_model),
        enforce_eager=True,
        max_model_len=1024,
        speculative_config={"model": PROPOSER_PATH, "num_speculative_tokens": 4},
        additional_config={"reprise": {"drafts": {"verify_cost": 0.0}}},
    ).create_engine_config()


class World:
    """A proposer, and a model runner's rows as far as it looks at them."""

    def __init__(self, vllm_config: Any) -> None:
        self.proposer: Any = proposer_module.CacheHitProposer(vllm_config)
        self.outputs: dict[str, list[int]] = {}
        self.observed: dict[str, list[int]] = defaultdict(list)
        step = self.proposer._provider.step

        def observed_step(request_ids: Any, emitted: Any, **given: Any) -> Any:
            for request_id, tokens in zip(request_ids, emitted, strict=True):
                self.observed[request_id] += tokens
            return step(request_ids, emitted, **given)

        self.proposer._provider.step = observed_step

    def runner(self) -> Any:
        names = list(self.outputs)
        tokens = np.zeros((8, 64), np.int32)
        for row, outputs in enumerate(self.outputs.values()):
            tokens[row, : len(PROMPT) + len(outputs)] = PROMPT + outputs
        return SimpleNamespace(
            requests={
                name: SimpleNamespace(output_token_ids=outputs)
                for name, outputs in self.outputs.items()
            },
            input_batch=SimpleNamespace(
                req_ids=names,
                num_prompt_tokens=np.full(8, len(PROMPT), np.int32),
                token_ids_cpu=tokens,
                num_tokens_no_spec=np.array(
                    [len(PROMPT) + len(outputs) for outputs in self.outputs.values()]
                    + [0] * (8 - len(names)),
                    np.int32,
                ),
            ),
        )

    def step(self, *, new: tuple[str, ...] = (), finished: tuple[str, ...] = ()) -> dict[str, Any]:
        """Requests end and begin, then each emits two more tokens of the song."""
        decided = SimpleNamespace(
            finished_req_ids=set(finished),
            scheduled_new_reqs=[
                SimpleNamespace(
                    req_id=name,
                    prompt_token_ids=list(PROMPT),
                    sampling_params=SamplingParams(temperature=0.0, max_tokens=50),
                )
                for name in new
            ],
            scheduled_spec_decode_tokens={},
            num_scheduled_tokens={},
            total_num_scheduled_tokens=1,  # a prompt is among them: its time teaches nothing
        )
        self.proposer.before_step(self.runner(), decided)
        for name in finished:
            del self.outputs[name]
        self.outputs |= {name: [] for name in new}
        emitted = []
        for outputs in self.outputs.values():
            sung = len(outputs)
            outputs += [SONG[(sung + i) % len(SONG)] for i in range(2)]
            emitted.append(outputs[-2:])
        runner = self.runner()
        self.proposer.before_propose(runner, decided)
        batch = runner.input_batch
        drafts = self.proposer.propose(emitted, batch.num_tokens_no_spec, batch.token_ids_cpu)
        return dict(zip(self.outputs, drafts, strict=True))

    @property
    def errors(self) -> dict[str, int]:
        return dict(self.proposer._errors.counts())


@pytest.fixture
def world(vllm_config: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    retriever = LocalRetriever(
        RetrievalConfig(embedding_model="lexical"), embedder=Embedder("lexical")
    )
    monkeypatch.setattr(proposer_module, "worker_retriever", lambda *_: retriever)
    world = World(vllm_config)
    yield world
    retriever.close()


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
    assert world.proposer.flush(30.0)
    assert provider.stats().answers == 2
    assert world.errors == {"learn": 1}
