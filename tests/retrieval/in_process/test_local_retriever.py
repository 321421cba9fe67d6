"""The seam, in this process, with the lexical embedder so that the tests take milliseconds."""

import threading
import time

import msgspec
import numpy as np
import pytest

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.in_process import retrieval_worker
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.near_search import NearSearch
from reprise.retrieval.tiers.sqlite_tier import SqliteTier


@pytest.fixture
def make():
    made = []

    def build(**options):
        values = {"clauses": False, **options.pop("config", {})}
        config = RetrievalConfig(embedding_model="lexical", **values)
        made.append(LocalRetriever(config, **options))
        return made[-1]

    yield build
    for retriever in made:
        retriever.close()


class Blocked(Embedder):
    """Does not embed before it may go on."""

    def __init__(self):
        super().__init__("lexical")
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.texts = []

    def encode(self, texts, namespaces):
        if texts:
            self.texts += texts
            self.asked.set()
            assert self.go_on.wait(200)
        return super().encode(texts, namespaces)


class BlockedByLongTexts(Blocked):
    """Besides, does not embed long texts before it may go on with those."""

    def __init__(self):
        super().__init__()
        self.asked_for_long, self.go_on_with_long = threading.Event(), threading.Event()

    def encode(self, texts, namespaces):
        if any(len(text) > 1000 for text in texts):
            self.asked_for_long.set()
            assert self.go_on_with_long.wait(200)
        return super().encode(texts, namespaces)


def answer(prompt, response, *, namespace="", **fields):
    return Answer.create(
        prompt_token_ids=list(prompt.encode()),
        response_token_ids=list(response.encode()),
        prompt_text=fields.pop("prompt_text", prompt),
        namespace=namespace,
        **fields,
    )


def near(retriever, text, *, namespace="", request_id="r", **prompt):
    assert retriever.flush(200)  # prompts overtake answers that are still joining
    retriever.submit(request_id, namespace=namespace, text=text, **prompt)
    assert retriever.flush(200)
    return retriever.poll(request_id)


def test_the_nearest_comes_first_with_its_token_ids(make):
    retriever = make()
    retriever.store(answer("how do I cancel my order", "press cancel"))
    retriever.store(answer("how do I cancel my subscription", "write to us"))
    retriever.store(answer("weather in Paris", "rain"))
    found = near(retriever, "please cancel my order")
    assert [bytes(f.response_token_ids.astype(np.uint8)) for f in found][:2] == [
        b"press cancel",
        b"write to us",
    ]
    assert found[0].similarity > found[1].similarity > 0.2
    assert found[0].response_token_ids.dtype == np.int32
    assert (found[0].clause, found[0].kind, found[0].namespace) == (0, "whole", "")


def test_nothing_crosses_a_wall(make):
    retriever = make()
    retriever.store(answer("cancel my order", "ok", namespace="acme"))
    assert near(retriever, "cancel my order", namespace="zeta") == []
    assert len(near(retriever, "cancel my order", namespace="acme")) == 1


def test_queries_are_cut_out_of_token_ids(make):
    retriever = make(
        decode=lambda ids: bytes(ids).decode(), query_of=lambda prompt: prompt.partition("USER:")[2]
    )
    retriever.store(answer("SYSTEM:desk USER:cancel my order", "ok", prompt_text=""))
    ids = list(b"SYSTEM:other USER:cancel my order")
    [found] = near(retriever, None, prompt_token_ids=ids)
    assert found.similarity == pytest.approx(1.0, abs=1e-3)


def test_poll_says_none_until_there_and_after_discard(make):
    retriever = make()
    assert retriever.poll("unknown") is None
    assert near(retriever, "hello") == []
    retriever.discard("r")
    assert retriever.poll("r") is None


def test_updates_tell_what_joined_and_what_was_evicted(make):
    retriever = make(config={"memory_bytes": 1 << 16})
    for number in range(100):
        retriever.store(answer(f"question {number}", "x" * 100))
    assert retriever.flush(200)
    updates = retriever.updates()
    added = {u.answer_id for u in updates if u.added}
    removed = {u.answer_id for u in updates if not u.added}
    assert retriever.updates() == []
    assert removed <= added
    assert len(added) - len(removed) == retriever.stats().answers < 100
    assert retriever.stats().bytes <= 1 << 16


def test_an_answer_is_told_of_before_it_is_embedded(make):
    embedder = Blocked()
    retriever = make(embedder=embedder, config={"clauses": False})
    retriever.store(answer("a question", "x"))
    [update] = retriever.updates()
    assert update.prompt_token_ids.tolist() == list(b"a question")
    assert update.response_token_ids.tolist() == list(b"x")
    embedder.go_on.set()


def test_no_request_waits_for_another_with_a_longer_text(make):
    embedder = BlockedByLongTexts()
    retriever = make(embedder=embedder)
    retriever.submit("first", namespace="", text="first")  # the others wait together
    assert embedder.asked.wait(200)
    retriever.submit("long", namespace="", text="long " * 300)
    retriever.submit("short", namespace="", text="short")
    embedder.go_on.set()
    assert embedder.asked_for_long.wait(200)
    assert retriever.poll("short") == []
    assert retriever.poll("long") is None
    embedder.go_on_with_long.set()
    assert retriever.flush(200)
    assert retriever.poll("long") == []


def test_a_request_that_is_over_is_not_searched_for(make):
    embedder = Blocked()
    retriever = make(embedder=embedder, config={"clauses": False})
    retriever.submit("first", namespace="", text="one")
    assert embedder.asked.wait(200)
    retriever.submit("over", namespace="", text="two")
    retriever.submit("live", namespace="", text="three")
    retriever.discard("over")
    embedder.go_on.set()
    assert retriever.flush(200)
    assert retriever.stats().abandoned == 1
    assert retriever.stats().submitted == 3
    assert embedder.texts == ["one", "three"]


def test_the_same_answer_twice_is_one(make):
    retriever = make()
    retriever.store(answer("hello", "hi"))
    retriever.store(answer("hello", "hi"))
    assert retriever.flush(200)
    assert retriever.stats().answers == retriever.stats().stored == 1


def test_an_answer_of_a_known_id_takes_the_place_of_the_other(tmp_path, make, wait_until):
    """Here, in the tier and on other replicas: found by its own prompt, and by no other."""
    config = {"url": f"sqlite://{tmp_path}/a.sqlite", "poll_s": 0.02}
    retriever, replica = make(config=config), make(config=config)
    cancel, rain = "how do I cancel my order", "weather in Paris"
    steps = [(cancel, "old"), (rain, "new"), (rain, "newer")]
    for number, (prompt, response) in enumerate(steps):
        retriever.store(answer(prompt, response, answer_id="a", created_s=1e9 + number))
        assert retriever.flush(200)
        assert [u.added for u in retriever.updates()] == [False] * (number > 0) + [True]
        wait_until(lambda: stored_response(replica) == response)  # noqa: B023 - called at once
        for each in (retriever, replica):
            assert [f.similarity > 0.9 for f in near(each, prompt)] == [True]
            assert prompt == cancel or near(each, cancel) == []
    # What is older than what is held comes late, and changes nothing.
    other = SqliteTier(tmp_path / "a.sqlite")
    other.put([answer(cancel, "old", answer_id="a", created_s=1e9)])
    other.put([answer("where is my parcel", "there", answer_id="b")])
    wait_until(lambda: stored_response(replica, "b") == "there")
    other.close()
    assert stored_response(replica) == "newer"


def stored_response(retriever, answer_id="a"):
    held = retriever.answer("", answer_id)
    return held and bytes(held.response_token_ids.astype(np.uint8)).decode()


def test_what_waits_is_written_where_the_models_are_not_loaded_yet(tmp_path, make, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(retrieval_worker, "Embedder", lambda *_, **__: go_on.wait(200) and None)
    retriever = make(config={"url": f"sqlite://{tmp_path}/a.sqlite"})
    retriever.store(answer("cancel my order", "ok"))
    retriever.store(answer("an exact one", "yes", exact_key=b"k"))
    exact = answer("exact", "yes", exact_key=b"key")
    retriever.store(msgspec.structs.replace(exact, fingerprint="f"))
    retriever.submit("r", namespace="", text="cancel my order")
    retriever.close()
    assert retriever.poll("r") == []
    tier = SqliteTier(tmp_path / "a.sqlite")
    assert {a.prompt_text for a in tier.answers("")} == {"cancel my order", "an exact one"}
    assert [a.fingerprint for a in tier.exact_answers("")] == ["f"]
    tier.close()
    go_on.set()


def test_another_tokenizers_answers_are_refused(make):
    retriever = make(tokenizer_key="mine")
    retriever.store(answer("hello", "hi", tokenizer_key="theirs"))
    assert near(retriever, "hello") == []
    assert retriever.stats().wrong_tokenizer == 1


def test_answers_of_another_tokenizer_in_the_tier_are_said_once(make, tmp_path, caplog):
    url = f"sqlite:///{tmp_path}/answers.sqlite"
    tier = SqliteTier(tmp_path / "answers.sqlite")
    tier.put([answer(f"hello {n}", "hi", tokenizer_key="theirs") for n in range(3)])
    tier.close()
    retriever = make(tokenizer_key="mine", config={"url": url})
    assert retriever.wait_until_warm(200)
    assert retriever.stats().wrong_tokenizer == 3
    (line,) = [r.getMessage() for r in caplog.records if "another tokenizer" in r.getMessage()]
    assert "its key is theirs, this engine's is mine" in line


def test_a_failing_decode_costs_the_batch_and_no_more(make, caplog):
    def decode(ids):
        raise RuntimeError(f"cannot decode {len(ids)} ids")

    retriever = make(decode=decode)
    assert near(retriever, None, prompt_token_ids=[1, 2]) == []
    assert retriever.stats().errors == 1
    assert "A batch of retrieval work failed" in caplog.text
    retriever.store(answer("hello", "hi"))
    assert len(near(retriever, "hello")) == 1


def test_prompts_beyond_the_queue_are_dropped_not_waited_for(make):
    embedder = Blocked()
    retriever = make(embedder=embedder, config={"queue_length": 1})
    retriever.submit("first", namespace="", text="hello")
    assert embedder.asked.wait(60)
    # Nothing leaves the queue meanwhile: who waited for room would wait for ever.
    for number in range(2000):
        retriever.submit(f"r{number}", namespace="", text="hello")
    assert retriever.stats().dropped == 1999
    embedder.go_on.set()


def test_nothing_is_taken_on_after_close(make):
    retriever = make()
    retriever.close()
    retriever.submit("r", namespace="", text="hello")
    retriever.store(answer("hello", "hi"))
    assert retriever.poll("r") == []
    assert retriever.health().state == "closed"


def test_clauses_find_what_the_whole_question_does_not(make):
    retriever = make(config={"clauses": True})
    assert retriever.flush(200)
    retriever.store(answer("how do I cancel my order", "press cancel"))
    retriever.store(answer("will I get a refund", "yes"))
    for number in range(40):  # like the whole question more than its halves are
        retriever.store(answer(f"my order will cancel refund how get {number}", "no"))
    found = near(retriever, "How do I cancel my order and will I get a refund?")
    by_answer = {bytes(f.response_token_ids.astype(np.uint8)): f for f in found}
    assert len(found) == 32
    assert by_answer[b"press cancel"].clause == 1
    assert by_answer[b"yes"].clause == 2
    assert by_answer[b"yes"].kind == "clause"
    assert len({f.answer_id for f in found}) == 32
    assert [f.similarity for f in found] == sorted((f.similarity for f in found), reverse=True)


def test_clauses_and_what_joins_them_are_told(make):
    retriever = make(config={"clauses": True})
    assert near(retriever, "How do I cancel my order and will I get a refund?") == []
    assert retriever.clauses("r") == [
        FoundClause("How do I cancel my order"),
        FoundClause("will I get a refund?", "and"),
    ]
    assert (retriever.stats().compound, retriever.stats().clause_s > 0) == (1, True)
    retriever.discard("r")
    assert retriever.clauses("r") == []
    near(retriever, "How do I cancel my order?", request_id="simple")
    assert retriever.clauses("simple") == []
    assert retriever.stats().compound == 1
    assert len(FoundClause.shortened("x" * 1000, "").text) == 200


def test_many_texts_are_searched_for_together_so_many_at_a_time(make):
    embedder = Blocked()
    retriever = make(embedder=embedder, config={"max_concurrent_searches": 3})
    embedder.go_on.set()
    for number in range(10):
        retriever.store(answer(f"question number {number}", str(number)))
    assert retriever.flush(200)
    embedder.go_on.clear()
    found = []
    texts = [f"question number {number}" for number in (3, 9, 0, 7, 3, 5)]
    asks = threading.Thread(target=lambda: found.extend(retriever.search([*texts, ""])))
    asks.start()
    assert embedder.asked.wait(200)
    time.sleep(0.1)
    assert retriever.stats().submitted + len(retriever._queue._prompts) <= 3
    embedder.go_on.set()
    asks.join(60)
    best = [bytes(near_answers[0].response_token_ids).decode()[0] for near_answers in found[:-1]]
    assert best == ["3", "9", "0", "7", "3", "5"]
    assert found[-1] == []  # an empty text is like nothing
    assert not retriever._results._results


def test_a_search_that_does_not_end_in_time_finds_nothing(make):
    embedder = Blocked()
    retriever = make(embedder=embedder)
    assert retriever.search(["one", "two"], timeout_s=0.2) == [[], []]
    assert not retriever._results._results
    embedder.go_on.set()
    assert retriever.search([]) == []


def test_no_more_are_searched_for_at_a_time_than_may_wait(make):
    embedder = Blocked()
    retriever = make(embedder=embedder, config={"queue_length": 4})
    retriever.store(answer("cancel my order", "ok"))
    embedder.go_on.set()
    assert retriever.flush(200)
    assert [len(found) for found in retriever.search(["cancel my order"] * 40)] == [1] * 40
    assert retriever.stats().dropped == 0


def test_clauses_can_be_turned_off(make):
    retriever = make(config={"clauses": False})
    retriever.store(answer("will I get a refund", "yes"))
    found = near(retriever, "How do I cancel my order and will I get a refund?")
    assert {f.clause for f in found} == {0}


def test_progress_tells_when_there_is_more_to_poll(make):
    embedder = Blocked()
    retriever = make(embedder=embedder)
    before = retriever.progress()
    retriever.submit("r", namespace="", text="blocked")
    assert embedder.asked.wait(200)
    assert retriever.progress() == before
    embedder.go_on.set()
    assert retriever.flush(200)
    assert retriever.progress() != before
    assert retriever.poll("r") == []


class FailsOnce(Embedder):
    """Fails at the first text, after others have had time to put work into the same batch."""

    def __init__(self):
        super().__init__("lexical")
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.fails = False

    def encode(self, texts, namespaces):
        if texts and "block" in texts:
            self.asked.set()
            assert self.go_on.wait(200)
        elif texts and self.fails:
            self.fails = False
            raise RuntimeError("injected")
        return super().encode(texts, namespaces)


def test_an_error_in_a_batch_loses_no_exact_answer_and_forgets_no_erasure(
    make, tmp_path, monkeypatch
):
    embedder = FailsOnce()
    url = f"sqlite:///{tmp_path}/answers.sqlite"
    told = []
    retriever = make(
        embedder=embedder,
        config={"url": url, "clauses": False},
        decode=lambda ids: bytes(ids).decode(),
        on_erased=told.extend,
    )
    retriever.store(answer("a question", "x", answer_id="gone"))
    assert retriever.flush(60)
    erased = []
    erase = retriever._worker.search.erase
    monkeypatch.setattr(
        retriever._worker.search,
        "erase",
        lambda keys, **how: (erased.extend(keys), erase(keys, **how))[1],
    )
    retriever.submit("first", namespace="", text="block")
    assert embedder.asked.wait(200)
    # All of it waits, and becomes one batch, whose prompt fails.
    embedder.fails = True
    retriever.submit("second", namespace="", text="another")
    exact = answer("exact question", "y", exact_key=b"k" * 16)
    retriever.store(msgspec.structs.replace(exact, fingerprint="f"))
    retriever._memory.remove([("", "gone")])
    embedder.go_on.set()
    assert retriever.flush(60)
    assert retriever.stats().errors == 1
    assert retriever.poll("second") == []
    assert ("", "gone") in erased
    assert ("", "gone") in told
    tier = SqliteTier(tmp_path / "answers.sqlite")
    [found] = tier.find_exact("", [b"k" * 16])
    tier.close()
    assert found.prompt_text == "exact question"


def test_what_could_not_be_erased_is_erased_later(make, monkeypatch):
    retriever = make()
    retriever.store(answer("a question", "x", answer_id="gone"))
    assert retriever.flush(60)
    erased, erase = [], retriever._worker.search.erase

    def fail_once(keys, **how):
        erased.append(set(keys))
        if len(erased) == 1:
            raise RuntimeError("injected")
        erase(keys, **how)

    monkeypatch.setattr(retriever._worker.search, "erase", fail_once)
    retriever._memory.remove([("", "gone")])
    assert retriever.flush(60)
    assert erased == [{("", "gone")}] * 2


def test_what_was_forgotten_on_its_way_here_is_not_kept_however_late_it_comes(
    make, tmp_path, advance_clock
):
    retriever = make(
        config={"url": f"sqlite:///{tmp_path}/answers.sqlite"},
        decode=lambda ids: bytes(ids).decode(),
    )
    late = answer("cancel my order", "ok", namespace="acme")
    exact = msgspec.structs.replace(late, exact_key=b"k" * 16, fingerprint="f")
    assert retriever.forget(Invalidation.create(namespace="acme"), timeout_s=60).done
    # A machine that stands still for a minute; the processes on it do not notice.
    advance_clock(60.0)
    retriever.store(late)
    retriever.store(exact)
    retriever.store(answer("where is my order", "there", namespace="acme"))
    assert retriever.flush(60)
    assert [a.prompt_text for a in retriever.answers()] == ["where is my order"]
    tier = SqliteTier(tmp_path / "answers.sqlite")
    assert tier.find_exact("acme", [b"k" * 16]) == []
    assert [a.prompt_text for a in tier.answers("acme")] == ["where is my order"]
    tier.close()


def test_an_exact_answer_without_a_query_keeps_no_other_from_the_tier(make, tmp_path):
    def decode(ids):
        text = bytes(ids).decode()
        if text == "broken":
            raise RuntimeError("injected")
        return text

    url = f"sqlite:///{tmp_path}/answers.sqlite"
    retriever = make(config={"url": url}, decode=decode)
    for key, text in ((b"a" * 16, "broken"), (b"b" * 16, "whole")):
        exact = answer(text, "y", prompt_text="", exact_key=key)
        retriever.store(msgspec.structs.replace(exact, fingerprint="f"))
    assert retriever.flush(60)
    tier = SqliteTier(tmp_path / "answers.sqlite")
    assert [a.exact_key for a in tier.find_exact("", [b"a" * 16, b"b" * 16])] == [b"b" * 16]
    tier.close()


def test_what_is_forgotten_while_it_is_being_found_is_not_handed_over(make, monkeypatch):
    retriever = make()
    retriever.store(answer("what is it", "a secret", answer_id="id1"))
    search = NearSearch.search

    def forget_then(self, queries):
        for found in search(self, queries):
            assert [each.answer_id for each in found.near_answers[0]] == ["id1"]
            retriever.forget(Invalidation.create(answer_id="id1"), timeout_s=60)
            yield found

    monkeypatch.setattr(NearSearch, "search", forget_then)
    assert near(retriever, "what is it") == []
