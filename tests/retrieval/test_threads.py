"""Every thread outlives an error in the body of its loop: it is counted, and the work goes on."""

import ast
import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest

from reprise.retrieval import RetrievalConfig
from reprise.retrieval.host.loop_errors import LoopErrors, keep_going
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.in_process.retrieval_worker import RetrievalWorker
from reprise.retrieval.query.clauses import ClauseSplitter
from reprise.retrieval.remote.remote_search import RemoteSearch
from reprise.retrieval.remote.remote_writer import RemoteWriter
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.near_search import NearSearch
from reprise.retrieval.tiers.memory_tier import MemoryTier
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.sync.circuit_breaker import CircuitBreaker
from reprise.retrieval.tiers.sync.memory_before import MemoryBefore
from reprise.retrieval.tiers.sync.tier_reader import TierReader
from reprise.retrieval.tiers.sync.tier_sync import TierSync
from reprise.tests.retrieval.failing_once import failing_once
from reprise.tests.retrieval.numbered_answers import answer

REPOSITORY = Path(__file__).resolve().parents[2]
# Where threads are started, and which test here or of the service (or why none) sees them go on.
THREADS = {
    "retrieval/host/process_end.py": "ends the process",
    "retrieval/in_process/retrieval_worker.py": "test_the_worker_of_retrieval",
    "retrieval/remote/remote_search.py": "test_searching_beyond_memory",
    "retrieval/remote/remote_writer.py": "test_writing_to_a_search_index",
    "retrieval/search/near_search.py": "test_a_question_whose_clauses_fail_costs_itself_only",
    "retrieval/service/process_retriever.py": "test_the_keeper",
    "retrieval/service/retrieval_client.py": "test_the_client_connects_again",
    "retrieval/service/retrieval_server.py": "test_the_server",
    "retrieval/search/snapshot_writer.py": "a thread a file, which catches all",
    "retrieval/tiers/sync/tier_sync.py": "test_reading_and_writing_a_tier",
    "retrieval/service/wire.py": "test_the_sender",
    "engine_ext/cli/proof_worker.py": "waits for lines, and ends the process",
    "engine_ext/cli/worker_process.py": "of a command that starts an engine",
    "engine_ext/checks/model_checks.py": "one name looked up, whose errors are findings",
    "engine_ext/checks/machine_checks.py": "one question to Redis, which catches all",
    "engine_ext/cli/doctor.py": "one check, whose errors are findings",
    "engine_ext/frontend/shared_exact.py": "one fingerprint, which catches all, and look-ups",
    "engine_ext/scheduling/folder_bound.py": "catches all in its loop",
    "engine_ext/speculator/read_back.py": "catches all in its loop",
    "engine_ext/worker/answer_learner.py": "catches all in its loop",
    "engine_ext/worker/prompt_ranks.py": "one function, whose errors are a line of the log",
    "engine_ext/worker/weights_keeper.py": "catches all in its loop",
    "spec/batching/batch.py": "stays in compiled code, which raises nothing",
    "eval/gpu/gpu_run.py": "a benchmark's",
    "eval/gpu/pack/pack.py": "processes of a command's, which fails with them",
    "eval/gpu/pack/unpack.py": "processes of a command's, which fails with them",
    "eval/gpu/gpu_worker.py": "a benchmark's",
    "eval/live/live_worker.py": "a benchmark's",
    "eval/live/redis_server.py": "a benchmark's",
    "eval/live/sampled_worker.py": "ends the process",
    "eval/report/progress.py": "a benchmark's",
    "eval/benchmarks/retrieval/snapshot.py": "a benchmark's",
}
CONFIG = RetrievalConfig(embedding_model="lexical", clauses=False)


def test_no_thread_is_forgotten_here():
    started = set()
    for path in REPOSITORY.rglob("*.py"):
        name = str(path.relative_to(REPOSITORY))
        if name.startswith(("tests/", ".")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("Thread", "Executor", "Timer")
            ):
                started.add(name)
    assert started == THREADS.keys()
    tests = {test for test in THREADS.values() if test.startswith("test_")}
    assert tests <= {
        node.name
        for path in (Path(__file__), Path(__file__).parent / "service/test_service_threads.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


def test_errors_are_counted_and_a_row_of_them_is_one_line(caplog):
    caplog.set_level(logging.INFO)
    errors, pauses = LoopErrors("Doing it"), []
    loop = failing_once(lambda: None, num_failures=4)
    keep_going(loop, errors, pause=lambda seconds: pauses.append(seconds))
    assert errors.num == 4
    assert pauses == [0.1, 0.2, 0.4, 0.8]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["Doing it failed and is tried again: AssertionError: injected"]
    stopped = failing_once(lambda: None, num_failures=10)
    keep_going(stopped, errors, pause=lambda _: True)
    assert errors.num == 5


def test_a_breaker_is_not_stuck_half_open_by_an_unexpected_error():
    now_s = 0.0
    breaker = CircuitBreaker("it", max_failures=1, retry_s=1.0, clock=lambda: now_s)
    for _ in range(2):
        with pytest.raises(AssertionError):
            breaker.call(failing_once(lambda: None))
        assert breaker.state == "open"
        now_s += 100.0
    assert breaker.call(lambda: 5) == 5
    assert breaker.state == "closed"


class FailingIndex:
    """A search index that is there, whose first calls of each kind raise what nobody expects."""

    def __init__(self):
        self.upsert = failing_once(lambda rows: self.rows.extend(rows))
        self.search = failing_once(lambda *_: [[]])
        self.rows = []

    def open(self):
        pass

    def settle(self):
        pass

    def close(self):
        pass


def embedded(number):
    return msgspec.structs.replace(answer(number), embedding=b"\x00<" * 4, embedder="e")


def test_writing_to_a_search_index():
    index, writer = FailingIndex(), RemoteWriter(max_rows=9, ttl_s=None)
    writer.start(index, embedder="e", dim=4)
    writer.written([embedded(1)])
    assert writer.drain(100)
    writer.written([embedded(2)])
    assert writer.drain(100)
    assert [row.answer_id for row in index.rows] == ["id2"]
    assert writer.errors.num == 1
    writer.close()


def test_searching_beyond_memory(wait_until):
    index, writer = FailingIndex(), RemoteWriter(max_rows=9, ttl_s=None)
    writer.start(index, embedder="e", dim=4)
    wait_until(lambda: writer.is_open)
    remote = RemoteSearch(index, writer, budget_s=1.0, holds=lambda *_: False, find=lambda *_: [])
    found = []
    for count in (1, 2):
        assert remote.ask("acme", np.ones((1, 4), np.float32), 1, found.append)
        wait_until(lambda n=count: len(found) == n)
    assert found[0] is None
    assert found[1].rows == [[]]
    assert (remote.errors.num, remote.num_failed) == (1, 1)
    writer.close()
    remote.close()


@pytest.mark.parametrize("method", ["_load", "_process_batch", "_is_complete"])
def test_the_worker_of_retrieval(method, monkeypatch, wait_until, caplog):
    failing = failing_once(getattr(RetrievalWorker, method))
    monkeypatch.setattr(RetrievalWorker, method, lambda *a: failing(*a))
    retriever = LocalRetriever(CONFIG, embedder=Embedder("lexical"))
    retriever.store(answer(1))
    wait_until(lambda: retriever.stats().errors == 1)
    retriever.store(answer(2))
    assert retriever.flush(60)
    retriever.submit("r", namespace="", text="question number 2")
    wait_until(lambda: retriever.poll("r"))
    assert retriever.health().state == "ready"
    assert len([r for r in caplog.records if "batch of retrieval work failed" in r.message]) == 1
    retriever.close()


def test_a_question_whose_clauses_fail_costs_itself_only():
    embedder = Embedder("lexical")
    memory = MemoryTier(max_bytes=1 << 20)
    memory.put([answer(1)])

    class FailingSplitter(ClauseSplitter):
        def clauses(self, text):
            if "bad" in text:
                raise RecursionError("injected")
            return super().clauses(text)

    search = NearSearch(CONFIG, embedder, memory, splitter=FailingSplitter())
    search.join([answer(1)], ["question number 1"])
    assert search._clauses(["a bad one", "question number 1"]) == [[], []]
    search.close()


@pytest.mark.parametrize("method", ["changes", "namespaces", "put", "record_usage"])
def test_reading_and_writing_a_tier(method, tmp_path, monkeypatch, wait_until):
    tier = SqliteTier(tmp_path / "answers.sqlite")
    tier.put([answer(1)])
    monkeypatch.setattr(tier, method, failing_once(getattr(tier, method)))
    arrived = []
    sync = TierSync(
        tier, MemoryBefore(on_added=arrived.extend, on_forgotten=lambda _: None), poll_s=0.01
    )
    wait_until(lambda: arrived)
    sync.write([answer(2)])
    sync.record_usage("", {"id1": (1, 1)})
    assert sync.drain(100)
    sync.write([answer(3)])
    assert sync.drain(100)
    assert {"id1", "id3"} <= {a.answer_id for a in tier.answers("")}
    assert sync.unwritten == (1 if method == "put" else 0)
    assert sync.breakers["write"] == sync.breakers["read"] == "closed"
    sync.close()


def test_the_loops_of_a_tier_begin_again(tmp_path, monkeypatch, wait_until):
    for of, method in ((TierSync, "_has_work"), (TierReader, "loop")):
        failing = failing_once(getattr(of, method))
        monkeypatch.setattr(of, method, lambda *a, f=failing: f(*a))
    tier, arrived = SqliteTier(tmp_path / "answers.sqlite"), []
    tier.put([answer(1)])
    sync = TierSync(
        tier, MemoryBefore(on_added=arrived.extend, on_forgotten=lambda _: None), poll_s=0.01
    )
    wait_until(lambda: arrived)
    sync.write([answer(2)])
    assert sync.drain(100)
    assert len(list(tier.answers(""))) == 2
    sync.close()
