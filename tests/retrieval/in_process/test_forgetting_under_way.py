"""What is to be forgotten while it is on its way through a retriever does not reach the tier."""

import threading

import pytest

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
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
