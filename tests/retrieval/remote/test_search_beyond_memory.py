"""Answers that memory does not hold are found in Milvus and drafted from; faults cost hits only."""

import time

import pytest

from reprise.eval.live.milvus_server import is_milvus_installed
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.remote.remote_search import TIMEOUT_S
from reprise.retrieval.tiers.sqlite_tier import SqliteTier

pytestmark = pytest.mark.slow
# What a call that does not wait takes at most, but for a loaded machine that stands still.
PATIENCE_S = 0.5
MANY = 60


def found(retriever, number, *, namespace="acme"):
    """Ids found for an answer's own question, the best first; waits."""
    name = f"r{time.monotonic_ns()}"
    text = f"question number {number} about w{number}x{number}"
    retriever.submit(name, namespace=namespace, text=text)
    assert retriever.flush(60)
    near = retriever.poll(name)
    retriever.discard(name)
    return [each.answer_id for each in near]


@pytest.fixture
def fill(make_retriever, make_answer):
    """A function that has one replica store answers, in two namespaces, and returns it."""

    def fill(search, **options):
        first = make_retriever(search, **options)
        for number in range(MANY):
            first.store(make_answer(number))
        first.store(make_answer(MANY, namespace="other"))
        assert first.flush(100)
        return first

    return fill


def small(make_retriever, search, **options):
    """A replica whose memory holds some twenty answers, once it has seen all there are."""
    retriever = make_retriever(search, memory_bytes=1 << 16, near_answers=4, **options)
    assert retriever.wait_until_warm(60)
    assert retriever.flush(60)
    assert retriever.stats().answers < MANY // 2
    return retriever


def wait_until_open(retriever, wait_until):
    wait_until(lambda: retriever._behind.second and retriever._behind.second.remote.writer.is_open)


def not_held(retriever):
    return next(n for n in range(MANY) if retriever.answer("acme", f"id{n}") is None)


def test_what_does_not_fit_memory_is_found_and_joins_it(milvus, fill, make_retriever, wait_until):
    first = fill(milvus.url)
    retriever = small(make_retriever, milvus.url)
    wait_until_open(retriever, wait_until)
    number = not_held(retriever)
    assert found(retriever, number)[0] == f"id{number}"
    stats = retriever.stats()
    assert (stats.remote_searches, stats.remote_failed) == (1, 0)
    assert stats.remote_found == 1
    assert retriever.answer("acme", f"id{number}") is not None
    # No tenant finds another's, here or there.
    assert found(retriever, number, namespace="other") in ([], [f"id{MANY}"])
    assert found(retriever, MANY) != [f"id{MANY}"]
    assert first.stats().remote_unwritten == 0
    assert retriever.health().breakers == dict.fromkeys(
        ("read", "write", "search", "index"), "closed"
    )


def test_what_is_forgotten_leaves_the_index_and_does_not_come_back(
    milvus, fill, make_retriever, wait_until
):
    first = fill(milvus.url)
    retriever = small(make_retriever, milvus.url)
    wait_until_open(retriever, wait_until)
    index = retriever._behind.second.remote._index
    vector = first._worker.search.embedder.encode(["question number 1 about w1x1"], ["acme"])

    def held(namespace="acme"):
        return {answer_id for answer_id, _ in index.search(namespace, vector, 100)[0]}

    assert held() == {f"id{n}" for n in range(MANY)}
    assert first.forget(Invalidation.create(answer_id="id1"), timeout_s=60).done
    assert first.flush(60)
    assert held() == {f"id{n}" for n in range(MANY) if n != 1}
    # The other replica may have had it in memory: it looks at the tier every 50 ms.
    wait_until(lambda: "id1" not in found(retriever, 1))
    assert first.forget(Invalidation.create(namespace="acme"), timeout_s=60).done
    assert first.flush(60)
    assert (held(), held("other")) == (set(), {f"id{MANY}"})
    wait_until(lambda: retriever.stats().answers <= 1)
    assert found(retriever, 2) == []


def test_what_the_tier_does_not_hold_any_more_leaves_the_index_once_found(
    milvus, fill, make_retriever, tmp_path, wait_until
):
    fill(milvus.url)
    retriever = small(make_retriever, milvus.url)
    wait_until_open(retriever, wait_until)
    number = not_held(retriever)
    tier = SqliteTier(tmp_path / "answers.sqlite")  # as somebody without a search of its own does
    tier.remove("acme", [f"id{number}"])
    tier.close()
    assert f"id{number}" not in found(retriever, number)
    assert retriever.stats().remote_orphans == 1
    assert retriever.flush(60)
    index = retriever._behind.second.remote._index
    vector = retriever._worker.search.embedder.encode([f"question number {number}"], ["acme"])
    assert f"id{number}" not in {i for i, _ in index.search("acme", vector, 100)[0]}


def lines(caplog, words):
    return [each for each in caplog.messages if words in each]


def serves_from_memory(retriever, make_answer):
    """Whether storing and near answers go on as if nothing were wrong."""
    assert waits_for_nothing(lambda: retriever.store(make_answer(1000)))
    deadline_s = time.monotonic() + 100
    while not retriever.stats().embedded and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return near_at_once(retriever, 1000) == ["id1000"]


def waits_for_nothing(call):
    """Whether a call returns at once: who waits for Milvus does so each time, while a machine
    stands still once."""
    for _ in range(3):
        began_s = time.monotonic()
        call()
        if time.monotonic() - began_s < PATIENCE_S:
            return True
    return False


def near_at_once(retriever, number):
    name = f"r{time.monotonic_ns()}"
    text = f"question number {number} about w{number}x{number}"
    retriever.submit(name, namespace="acme", text=text)
    began_s = time.monotonic()
    while retriever.poll(name) is None:
        assert time.monotonic() - began_s < 60
        time.sleep(0.002)
    return [each.answer_id for each in retriever.poll(name)][:1]


def test_absent_at_start_then_there(start_milvus, make_retriever, make_answer, wait_until, caplog):
    server = start_milvus()
    server.kill()
    retriever = make_retriever(server.url)
    assert serves_from_memory(retriever, make_answer)
    wait_until(lambda: "search beyond memory" in retriever.health().detail)
    server.start()
    wait_until(lambda: retriever.health().state == "ready")
    assert retriever.flush(60)  # what was stored meanwhile is written
    assert retriever.stats().remote_unwritten == 0
    assert len(lines(caplog, "Writing to the search index fails")) == 1
    assert retriever.stats().errors == 0


@pytest.mark.parametrize("search_timeout_s", [TIMEOUT_S])
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_killed_and_frozen_while_serving(
    milvus, make_retriever, make_answer, wait_until, caplog, fault
):
    retriever = make_retriever(milvus.url, search_budget_ms=50.0)
    wait_until_open(retriever, wait_until)
    assert serves_from_memory(retriever, make_answer)
    getattr(milvus, fault)()
    for _ in range(5):
        assert near_at_once(retriever, 1000) == ["id1000"]
    wait_until(lambda: retriever.health().state == "degraded")  # whoever notices first
    # And nobody waits for it any longer.
    assert waits_for_nothing(lambda: near_at_once(retriever, 1000))
    assert near_at_once(retriever, 1000) == ["id1000"]
    assert 1 <= len(lines(caplog, "fails, going on without it")) <= 2
    milvus.thaw() if fault == "freeze" else milvus.start()

    def works():
        near_at_once(retriever, 1000)
        return retriever.health().state == "ready"

    wait_until(works)
    assert retriever.stats().errors == 0


def test_slow_costs_the_budget_and_then_not_even_that(
    milvus, fill, make_retriever, make_proxy, wait_until
):
    fill(milvus.url)
    proxy = make_proxy(milvus.port)
    retriever = small(make_retriever, f"milvus://127.0.0.1:{proxy.port}", search_budget_ms=5.0)
    wait_until_open(retriever, wait_until)
    proxy.delay_s = 0.1
    number = not_held(retriever)
    assert found(retriever, number)[:1] != [f"id{number}"]  # late for this one
    assert retriever.stats().remote_late == 1
    assert found(retriever, number)[:1] == [f"id{number}"]  # and there for the next
    for other in range(3):
        found(retriever, other)
    assert not retriever._behind.second.remote.is_quick
    proxy.delay_s = 2.0
    assert waits_for_nothing(lambda: near_at_once(retriever, number))
    proxy.delay_s = 0.0


def test_another_schema_costs_the_search_and_nothing_else(
    milvus, make_retriever, make_answer, wait_until, caplog
):
    first = make_retriever(milvus.url)
    wait_until_open(first, wait_until)
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(uri=f"http://127.0.0.1:{milvus.port}", dedicated=True)
    name = first._behind.second.remote._index.collection
    client.drop_collection(name)
    schema = MilvusClient.create_schema(auto_id=True)
    schema.add_field("row_id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    client.create_collection(name, schema=schema)
    client.close()
    retriever = make_retriever(milvus.url)
    wait_until(lambda: lines(caplog, "is of another schema"))
    assert serves_from_memory(retriever, make_answer)
    assert retriever.health().state == "degraded"
    assert retriever.stats().remote_searches == 0


@pytest.mark.skipif(not is_milvus_installed(), reason="no Milvus: pip install 'reprise[milvus]'")
def test_a_file_of_milvus_lite(fill, make_retriever, tmp_path, wait_until):
    first = fill(f"milvus://{tmp_path}/answers.db")
    first.close()
    retriever = small(make_retriever, f"milvus://{tmp_path}/answers.db")
    wait_until_open(retriever, wait_until)
    number = not_held(retriever)
    assert found(retriever, number)[0] == f"id{number}"
