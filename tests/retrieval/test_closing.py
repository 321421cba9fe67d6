"""Whatever two threads close at once is closed once, and fails for neither."""

import ast
import itertools
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from reprise.retrieval import RetrievalConfig
from reprise.retrieval.host.owned_folder import OwnedFolder, folder_name
from reprise.retrieval.host.shared_block import create_block
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.retrieval.service.retrieval_client import RetrievalClient
from reprise.retrieval.service.shared_results import ResultReader, ResultWriter
from reprise.retrieval.service.wire import Sender
from reprise.retrieval.tiers.memory_tier import MemoryTier
from reprise.retrieval.tiers.sqlite_tier import SqliteTier

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = RetrievalConfig(embedding_model="lexical", clauses=False)
_ROUNDS = 50  # a race is a matter of chance: without its lock a folder fails in most of them


def folder(path):
    owned = OwnedFolder(path)
    owned.claim()
    return owned.remove


def reader(_):
    writer = ResultWriter(folder_name(), num_bytes=1 << 20)
    read = ResultReader(writer.name)
    writer.close()
    return read.close


def opened_tier(path):
    tier = SqliteTier(path)
    tier.namespaces()
    return tier.close


def sender(_):
    near, far = socket.socketpair()
    far.close()
    each = Sender(near, max_bytes=1 << 10)

    def close():  # as whoever reads of the connection does
        each.close()
        near.close()

    return close


# What has a descriptor, a connection or a thread: how it is made, and how often it is tried.
CLOSERS = {
    "OwnedFolder": (folder, _ROUNDS),
    "SharedBlock": (lambda _: create_block(folder_name(), 4096).close, _ROUNDS),
    "ResultWriter": (lambda _: ResultWriter(folder_name(), num_bytes=1 << 20).close, _ROUNDS),
    "ResultReader": (reader, _ROUNDS),
    "Sender": (sender, _ROUNDS),
    "RetrievalClient": (lambda path: RetrievalClient(str(path)).close, 5),
    "MemoryTier": (lambda _: MemoryTier(max_bytes=1 << 20).close, _ROUNDS),
    "SqliteTier": (opened_tier, 10),
    # With all that writes behind memory.
    "LocalRetriever": (
        lambda path: LocalRetriever(CONFIG.model_copy(update={"url": f"sqlite://{path}"})).close,
        3,
    ),
    "ProcessRetriever": (lambda _: ProcessRetriever(CONFIG).close, 1),
}
# Closed by whom is listed above, or by one thread alone.
PARTS = {
    "BehindMemory": "LocalRetriever",
    "TierSync": "LocalRetriever",
    "NearSearch": "LocalRetriever",
    "RemoteWriter": "LocalRetriever",
    "RemoteSearch": "LocalRetriever",
    "RemoteIndex": "RemoteSearch",
    "MilvusRemoval": "RemoteSearch, taken under its lock",
    "RedisTier": "LocalRetriever",
    "RedisConnection": "RedisTier, taken under its lock",
    "RetrievalServer": "the main thread of the retrieval process",
    "Retriever": "an interface",
    "Tier": "an interface",
}


def at_once(close):
    """Call it in two threads at once; what they raise."""
    errors, barrier = [], threading.Barrier(2)

    def run():
        barrier.wait()
        try:
            close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("name", CLOSERS)
def test_two_threads_may_close_at_once(name, tmp_path):
    make, num_rounds = CLOSERS[name]
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(num_rounds):
            close = make(tmp_path / str(number))
            assert at_once(close) == []
            close()
    finally:
        sys.setswitchinterval(before_s)


def test_nothing_that_is_closed_is_forgotten_here():
    found = set()
    for path in (REPOSITORY / "retrieval").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(each, ast.FunctionDef)
                and (each.name == "close" or (each.name, node.name) == ("remove", "OwnedFolder"))
                for each in node.body
            ):
                found.add(node.name)
    assert found == CLOSERS.keys() | PARTS.keys()


def test_no_descriptor_is_closed_where_others_may_close_it_too():
    """Only by a local name: an attribute is another thread's as well."""
    rooms = (REPOSITORY / room for room in ("retrieval", "engine_ext", "spec", "kernels"))
    for path in itertools.chain.from_iterable(room.rglob("*.py") for room in rooms):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.close":
                assert not isinstance(node.args[0], ast.Attribute), f"{path}: {ast.unparse(node)}"


def test_a_connection_is_shut_down_once_and_not_after_its_close():
    shut_down = []
    connection = SimpleNamespace(shutdown=shut_down.append)
    closing = Sender(connection, max_bytes=1 << 10)
    assert at_once(closing.close) == []
    closing.close()
    assert len(shut_down) == 1
