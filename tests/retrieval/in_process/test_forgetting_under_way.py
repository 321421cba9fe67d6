"""What is to be forgotten while it is on its way through a retriever does not reach the tier."""

import threading

import pytest

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation, InvalidationPage
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.in_process.retriever_memory import RetrieverMemory
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.tiers.sqlite_tier import SqliteTier


def answer(number):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * 20,
        prompt_text=f"question {number}",
        namespace="acme",
        answer_id=f"id{number}",
    )


class Held:
    """Has each call of a method wait until it is told to go on."""

    def __init__(self, monkeypatch, owner, name, *, is_held=lambda *_: True):
        self.arrived, self.goes_on = threading.Event(), threading.Event()
        method = getattr(owner, name)

        def held(*arguments, **options):
            if is_held(*arguments):
                self.arrived.set()
                assert self.goes_on.wait(60)
            return method(*arguments, **options)

        monkeypatch.setattr(owner, name, held)


@pytest.mark.parametrize("by_another", [True, False], ids=["by another", "here"])
def test_an_answer_that_is_being_embedded(tmp_path, monkeypatch, wait_until, by_another):
    """It is still in memory, which is looked through, when the worker has it written."""
    other = SqliteTier(tmp_path / "answers.sqlite")
    config = RetrievalConfig(
        url=f"sqlite://{tmp_path}/answers.sqlite",
        embedding_model="lexical",
        clauses=False,
        poll_s=0.02,
    )
    embedding = Held(monkeypatch, Embedder, "encode")
    removing = Held(monkeypatch, RetrieverMemory, "remove", is_held=lambda _, keys: bool(keys))
    retriever = LocalRetriever(config, embedder=Embedder("lexical"))
    try:
        wait_until(lambda: retriever.position is not None)
        retriever.store(answer(1))
        assert embedding.arrived.wait(60)
        invalidation = Invalidation.create(namespace="acme")
        if by_another:
            other.forget(invalidation)
        else:
            forgetting = threading.Thread(
                target=retriever.forget, args=(invalidation,), kwargs={"timeout_s": 60}
            )
            forgetting.start()
            # Read back from the log, it is old by now.
            wait_until(lambda: retriever.position == "1")
        assert removing.arrived.wait(60)
        embedding.goes_on.set()
        wait_until(lambda: not retriever._memory.joining and not retriever._worker.is_busy)
        # What was written by now is no longer taken out of what waits.
        wait_until(lambda: not retriever._tiers._queue)
        removing.goes_on.set()
        wait_until(lambda: retriever.keys() == [])
        assert retriever.flush(60)
        assert other.find("acme", ["id1"]) == []
    finally:
        embedding.goes_on.set()
        removing.goes_on.set()
        if not by_another:
            forgetting.join()
        retriever.close()
        other.close()


def test_an_answer_that_is_being_embedded_when_a_part_of_the_log_is_lost(
    tmp_path, monkeypatch, wait_until
):
    """It may be meant by what is not known any more, as much as what waits to be written."""
    is_lost, invalidations = threading.Event(), SqliteTier.invalidations

    def with_a_gap(tier, after):
        page = invalidations(tier, after)
        if is_lost.is_set() and after is not None:
            is_lost.clear()
            return InvalidationPage(position=page.position, complete=False)
        return page

    monkeypatch.setattr(SqliteTier, "invalidations", with_a_gap)
    embedding = Held(monkeypatch, Embedder, "encode")
    config = RetrievalConfig(
        url=f"sqlite://{tmp_path}/answers.sqlite",
        embedding_model="lexical",
        clauses=False,
        poll_s=0.02,
    )
    told = []
    retriever = LocalRetriever(config, embedder=Embedder("lexical"), on_forgotten=told.append)
    try:
        wait_until(lambda: retriever.position is not None)
        retriever.store(answer(1))
        assert embedding.arrived.wait(60)
        is_lost.set()
        wait_until(lambda: told)
        embedding.goes_on.set()
        wait_until(lambda: retriever.keys() == [])
        retriever.store(answer(2))
        assert retriever.flush(60)
        other = SqliteTier(tmp_path / "answers.sqlite")
        assert [each.answer_id for each in other.answers("acme")] == ["id2"]
        other.close()
        assert retriever.keys() == [("acme", "id2")]
    finally:
        embedding.goes_on.set()
        retriever.close()


def test_what_another_has_forgotten_while_answers_of_a_tier_wait_to_join(
    tmp_path, monkeypatch, wait_until
):
    """Neither what memory holds by then waits for them, nor do they join that are meant."""
    other = SqliteTier(tmp_path / "answers.sqlite")
    other.put([answer(number) for number in range(1200)])
    config = RetrievalConfig(
        url=f"sqlite://{tmp_path}/answers.sqlite",
        embedding_model="lexical",
        clauses=False,
        queue_length=100,
        poll_s=0.02,
    )
    told = []
    embedding = Held(monkeypatch, Embedder, "encode")
    retriever = LocalRetriever(config, embedder=Embedder("lexical"), on_forgotten=told.append)
    try:
        assert embedding.arrived.wait(60)
        held = set(retriever.keys())
        waits = next(n for n in range(1200) if ("acme", f"id{n}") not in held)
        joined = next(n for n in range(1200) if ("acme", f"id{n}") in held)
        for number in (waits, joined):
            other.forget(Invalidation.create(answer_id=f"id{number}"))
        wait_until(lambda: sum(len(each.invalidations) for each in told) == 2)
        assert ("acme", f"id{joined}") not in set(retriever.keys())
        embedding.goes_on.set()
        assert retriever.wait_until_warm(60)
        missing = {answer(n).answer_id for n in range(1200)} - {
            a.answer_id for a in retriever.answers()
        }
        assert missing == {f"id{waits}", f"id{joined}"}
    finally:
        embedding.goes_on.set()
        retriever.close()
        other.close()
