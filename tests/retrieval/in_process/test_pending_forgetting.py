"""What is to be forgotten does not come back while the tier has yet to forget it."""

import threading

import pytest

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.sync.memory_before import MemoryBefore
from reprise.retrieval.tiers.sync.tier_sync import TierSync
from reprise.retrieval.tiers.tier import TierError

MEANT = [
    {"namespace": "acme"},
    {"tenant": "acme"},
    {"answer_id": "id1"},
    {"prompt": "question 1"},
    {"older_than_s": 0},
    {"everything": True},
]


def answer(number, *, namespace="acme"):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * 20,
        prompt_text=f"question {number}",
        namespace=namespace,
        answer_id=f"id{number}",
    )


class HeldBack:
    """Has each `SqliteTier.forget` wait, and the next look at changes fail when told to."""

    def __init__(self, monkeypatch):
        self.goes_on, self.fails, self.read_anew = (threading.Event() for _ in range(3))
        forget, changes = SqliteTier.forget, SqliteTier.changes

        def forget_later(tier, *arguments, **options):
            assert self.goes_on.wait(60)
            return forget(tier, *arguments, **options)

        def failing_changes(tier, **options):
            if self.fails.is_set():
                self.fails.clear()
                raise TierError("not now")
            found = changes(tier, **options)
            if not options.get("anew"):
                self.read_anew.set()  # all was read before
            return found

        monkeypatch.setattr(SqliteTier, "forget", forget_later)
        monkeypatch.setattr(SqliteTier, "changes", failing_changes)

    def have_all_read_again(self):
        self.fails.set()
        while self.fails.is_set():
            self.read_anew.clear()
        assert self.read_anew.wait(60)


@pytest.mark.parametrize("conditions", MEANT, ids=lambda each: next(iter(each)))
def test_the_tier_is_read_again_before_it_forgets(tmp_path, monkeypatch, conditions, advance_clock):
    tier = HeldBack(monkeypatch)
    config = RetrievalConfig(
        url=f"sqlite://{tmp_path}/answers.sqlite",
        embedding_model="lexical",
        clauses=False,
        poll_s=0.02,
    )
    retriever = LocalRetriever(config, embedder=Embedder("lexical"))
    try:
        retriever.store(answer(1))
        assert retriever.flush(60)
        assert not retriever.forget(Invalidation.create(**conditions), timeout_s=0.0).done
        assert retriever.keys() == []
        tier.have_all_read_again()
        assert retriever.keys() == []
        advance_clock(3.0)  # clocks may differ by less
        retriever.store(answer(2))  # which no condition means
        tier.goes_on.set()
        assert retriever.flush(60)
        assert retriever.keys() == [("acme", "id2")]
    finally:
        tier.goes_on.set()
        retriever.close()


def test_it_was_read_before_the_tier_forgot_and_joins_after_that(tmp_path, wait_until):
    path = tmp_path / "answers.sqlite"
    arrives, goes_on = threading.Event(), threading.Event()
    held = {}

    def join(answers):
        arrives.set()
        assert goes_on.wait(60)
        held.update({(each.namespace, each.answer_id): each for each in answers})

    def leave(removed):
        for key in removed:
            held.pop(key, None)

    other = SqliteTier(path)
    sync = TierSync(
        SqliteTier(path),
        MemoryBefore(on_added=join, on_forgotten=lambda _: None, on_removed=leave),
        poll_s=0.02,
    )
    try:
        assert sync.caught_up.wait(60)
        other.put([answer(1), answer(2)])
        assert arrives.wait(60)
        pending = sync.forget(Invalidation.create(answer_id="id1"))
        assert pending.done.wait(60)
        assert pending.removed == (("acme", "id1"),)
        goes_on.set()
        wait_until(lambda: set(held) == {("acme", "id2")})
    finally:
        goes_on.set()
        sync.close()
        other.close()
