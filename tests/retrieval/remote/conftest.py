"""What these tests share: a Milvus Lite on a port, and retrievers that search it."""

import pytest

from reprise.eval.live.milvus_server import MilvusServer, is_milvus_installed
from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.in_process import behind_memory
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder


@pytest.fixture
def start_milvus():
    """A function that starts a Milvus Lite server; all are stopped afterwards."""
    if not is_milvus_installed():
        pytest.skip("no Milvus: pip install 'reprise[milvus]'")
    servers = []

    def start():
        servers.append(MilvusServer())
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def milvus(start_milvus):
    """A Milvus Lite server of the test's own."""
    return start_milvus()


@pytest.fixture(scope="module")
def shared_milvus():
    """A Milvus Lite server for the tests of a module, which leave it running."""
    if not is_milvus_installed():
        pytest.skip("no Milvus: pip install 'reprise[milvus]'")
    with MilvusServer() as server:
        yield server


@pytest.fixture
def make_answer():
    def make(number, *, namespace="acme", size=20):
        return Answer.create(
            prompt_token_ids=[number],
            response_token_ids=[number] * size,
            prompt_text=f"question number {number} about w{number}x{number}",
            namespace=namespace,
            answer_id=f"id{number}",
        )

    return make


@pytest.fixture
def search_timeout_s():
    """How long a search may take: Milvus Lite is written in Python, and the machine may be loaded.
    Where a search is to be given up, a test has it as users do."""
    return 60.0


@pytest.fixture
def make_retriever(tmp_path, search_timeout_s, monkeypatch):
    """A function from a search setting to a retriever on a common SQLite file."""
    monkeypatch.setattr(behind_memory, "TIMEOUT_S", search_timeout_s)
    made = []

    def make(search, *, search_budget_ms=1000 * search_timeout_s, **options):
        values = {
            "url": f"sqlite://{tmp_path}/answers.sqlite",
            "embedding_model": "lexical",
            "clauses": False,
            "poll_s": 0.05,
            **options,
        }
        config = RetrievalConfig(search=search, **values)
        # More than a user may have a request wait.
        config = config.model_copy(update={"search_budget_ms": search_budget_ms})
        made.append(LocalRetriever(config, embedder=Embedder("lexical")))
        return made[-1]

    yield make
    for retriever in made:
        retriever.close()
