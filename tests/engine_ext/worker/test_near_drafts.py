"""When near answers are attached to a live request, and which: with a real retriever."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.worker.live_request import LiveRequest
from reprise.engine_ext.worker.near_drafts import NearDrafts
from reprise.retrieval import Answer, NearAnswer, RetrievalConfig
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec.api.config import DraftConfig
from reprise.spec.provider import DraftProvider
from reprise.tests.engine_ext.blocked_embedder import BlockedEmbedder

QUESTION = "how do I cancel my order"
REPLY = list(b"open your orders and press cancel")


class World:
    """One namespace `n` with one answer, and what a worker has around it."""

    def __init__(self) -> None:
        self.embedder = BlockedEmbedder()
        config = RetrievalConfig(embedding_model="lexical", clauses=False)
        self.retriever = LocalRetriever(config, embedder=self.embedder)
        self.provider = DraftProvider(DraftConfig(verify_cost=0.0))
        self.overlap = TokenOverlap()
        self.errors = ErrorCounter()
        self.near = NearDrafts(
            self.provider,
            self.retriever,
            self.overlap,
            max_near=4,
            vocabulary_size=256,
            errors=self.errors,
        )
        self.retriever.store(
            Answer.create(
                answer_id="cancelling",
                prompt_token_ids=list(QUESTION.encode()),
                response_token_ids=REPLY,
                prompt_text=QUESTION,
                namespace="n",
            )
        )
        assert self.retriever.flush(60)
        for update in self.retriever.updates():
            self.overlap.apply(update)

    def arrive(self, prompt: str, *, text: str | None = None, **hints: Any) -> LiveRequest:
        """A request that the front end has searched for, by its text or another one, and that has
        not started."""
        params = with_hints(SamplingParams(), RequestHints(retrieval_id="front-1", **hints))
        live = LiveRequest(params, list(prompt.encode()))
        self.retriever.submit("front-1", namespace="n", text=text or prompt)
        self.near.begin("r", live, "n")
        return live

    def start(self, live: LiveRequest) -> None:
        assert live.prompt_token_ids is not None
        live.num_prompt_tokens = len(live.prompt_token_ids)
        self.provider.start("r", live.prompt_token_ids, namespace="n")
        self.near.attach_first("r", live, "n")

    def draft(self) -> list[int]:
        return self.provider.step(["r"], [REPLY[:1]])[0]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.embedder.go_on.set()
    made.retriever.close()


def test_what_is_near_in_meaning_is_drafted_from_the_first_token_on(world: World) -> None:
    live = world.arrive("please cancel my order")
    assert world.retriever.flush(60)
    world.start(live)
    draft = world.draft()
    assert draft == REPLY[1 : 1 + len(draft)] != []
    assert world.near.report() == {
        "near_answers_in_time": {"meaning": 1, "tokens": 0},
        "near_answers_late": 0,
    }


@pytest.mark.parametrize("largest", [max(REPLY) - 1, max(REPLY)])
def test_what_the_model_cannot_look_up_is_not_drafted(world: World, largest: int) -> None:
    """Who may write to a tier may write anything, and a model that looks it up ends its engine."""
    world.near._vocabulary_size = largest + 1
    live = world.arrive("please cancel my order")
    assert world.retriever.flush(60)
    world.start(live)
    is_known = largest == max(REPLY)
    draft = world.draft()
    assert (draft == REPLY[1 : 1 + len(draft)] != []) == is_known
    assert world.errors.counts() == ({} if is_known else {"near answers": 1})


def test_nothing_is_searched_for_where_none_is_wanted(world: World) -> None:
    given = world.provider, world.retriever, world.overlap
    none = NearDrafts(*given, max_near=0, vocabulary_size=256, errors=world.errors)
    before = world.retriever.stats().submitted
    live = LiveRequest(SamplingParams(), list(QUESTION.encode()))
    none.begin("r", live, "n")
    assert world.retriever.stats().submitted == before
    live.num_prompt_tokens = len(QUESTION)
    none.attach_first("r", live, "n")
    assert live.near_by_tokens == []
    assert none.report() == {
        "near_answers_in_time": {"meaning": 0, "tokens": 0},
        "near_answers_late": 0,
    }


def test_shared_tokens_stand_in_until_meaning_is_there(world: World) -> None:
    world.embedder.go_on.clear()
    live = world.arrive(QUESTION)
    world.start(live)
    assert [near.answer_id for near in live.near_by_tokens] == ["cancelling"]
    assert world.near.report()["near_answers_in_time"] == {"meaning": 0, "tokens": 1}
    world.near.attach_arrived()
    world.embedder.go_on.set()
    assert world.retriever.flush(60)
    world.near.attach_arrived()
    assert world.near._awaiting == {}
    assert world.near.report()["near_answers_in_time"] == {"meaning": 0, "tokens": 1}


def test_what_comes_while_a_prompt_is_computed_is_in_time(world: World) -> None:
    """On model runner V2, where a request has a slot by then."""
    live = world.arrive("please cancel my order")
    live.num_prompt_tokens = len(live.prompt_token_ids)
    assert world.retriever.flush(60)
    world.near.attach_arrived()
    world.start(live)
    draft = world.draft()
    assert draft == REPLY[1 : 1 + len(draft)] != []
    assert world.near.report()["near_answers_in_time"] == {"meaning": 1, "tokens": 0}


def test_a_request_that_begins_once_more_is_counted_once(world: World) -> None:
    """It was preempted."""
    world.embedder.go_on.clear()
    live = world.arrive(QUESTION)
    world.start(live)
    world.near.attach_first("r", live, "n")
    assert world.near.report()["near_answers_in_time"] == {"meaning": 0, "tokens": 1}


def test_shared_tokens_stand_in_where_nothing_is_near_in_meaning(world: World) -> None:
    live = world.arrive(QUESTION, text="about something else altogether")
    assert world.retriever.flush(60)
    assert world.retriever.poll("front-1") == []
    world.start(live)
    draft = world.draft()
    assert draft == REPLY[1 : 1 + len(draft)] != []
    assert world.near._awaiting == {}
    assert world.near.report() == {
        "near_answers_in_time": {"meaning": 0, "tokens": 1},
        "near_answers_late": 0,
    }


def test_what_is_not_near_is_neither_in_time_nor_late(world: World) -> None:
    live = world.arrive("#", text="about something else altogether")
    assert world.retriever.flush(60)
    world.start(live)
    assert world.draft() == []
    assert world.near.report() == {
        "near_answers_in_time": {"meaning": 0, "tokens": 0},
        "near_answers_late": 0,
    }


def test_what_is_near_in_meaning_is_recorded_with_its_similarity(world: World) -> None:
    """Also where shared tokens had found it first."""
    world.embedder.go_on.clear()
    live = world.arrive(QUESTION, text="please cancel my order", record=True, counts_nonce="c")
    assert live.recorder is not None
    noted: dict[str, float] = {}
    note_near = live.recorder.note_near

    def note(near_answers: Iterable[NearAnswer]) -> None:
        noted.update((near.answer_id, near.similarity) for near in near_answers)
        note_near(near_answers)

    live.recorder.note_near = note  # type: ignore[method-assign]
    world.start(live)
    by_tokens = noted["cancelling"]
    world.embedder.go_on.set()
    assert world.retriever.flush(60)
    world.near.attach_arrived()
    (near,) = world.retriever.poll("front-1") or []
    assert noted["cancelling"] == near.similarity != by_tokens


def test_where_nothing_is_there_yet_the_request_goes_on_and_gets_it_later(world: World) -> None:
    world.embedder.go_on.clear()
    live = world.arrive("CANCEL-ORDER")  # no byte of it is one of the answer's prompt
    world.start(live)
    assert world.near.report()["near_answers_late"] == 1
    assert world.draft() == []
    world.embedder.go_on.set()
    assert world.retriever.flush(60)
    world.near.attach_arrived()
    draft = world.provider.step(["r"], [REPLY[1:2]])[0]
    assert draft == REPLY[2 : 2 + len(draft)] != []


def test_who_wants_no_drafts_is_not_searched_for(world: World) -> None:
    live = world.arrive(QUESTION, drafts=False)
    world.start(live)
    assert world.near.report() == {
        "near_answers_in_time": {"meaning": 0, "tokens": 0},
        "near_answers_late": 0,
    }


def test_what_is_over_is_forgotten_and_its_answers_get_their_credit(world: World) -> None:
    live = world.arrive("please cancel my order")
    assert world.retriever.flush(60)
    world.start(live)
    drafted = world.draft()
    world.provider.step(["r"], [[*drafted, 0]])
    stats = world.provider.finish("r")
    assert stats is not None
    assert stats.accepted_by_answer == {"cancelling": len(drafted)}
    world.near.end("r", live, "n", stats.accepted_by_answer)
    assert world.near._awaiting == {}
    assert world.retriever.poll("front-1") is None


def test_a_request_of_the_same_id_does_not_get_what_was_found_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found can be read for a while after the request is over."""
    submitted = []
    monkeypatch.setattr(world.retriever, "submit", lambda name, **_: submitted.append(name))
    discarded: list[str] = []
    monkeypatch.setattr(world.retriever, "discard", discarded.append)
    for _ in range(2):
        live = LiveRequest(SamplingParams(), list(QUESTION.encode()))
        world.near.begin("r", live, "n")
        world.near.end("r", live, "n", {})
    assert len({*submitted, "r"}) == 3
    assert discarded == submitted
    assert world.errors.counts() == {}


def test_nothing_of_another_namespace_is_attached(world: World) -> None:
    world.arrive("please cancel my order")
    assert world.retriever.flush(60)
    live = LiveRequest(
        with_hints(SamplingParams(), RequestHints(retrieval_id="front-1")), list(b"#")
    )
    live.num_prompt_tokens = 1
    world.near.begin("other", live, "m")
    world.provider.start("other", [35], namespace="m")
    world.near.attach_first("other", live, "m")
    assert world.provider.step(["other"], [REPLY[:1]])[0] == []
    assert "other" not in world.near._awaiting
    assert world.errors.counts() == {"near answers": 1}
