"""The index in Milvus, on a real Milvus Lite."""

import math
import time

import numpy as np
import pytest

from reprise.eval.live.milvus_server import is_milvus_installed
from reprise.eval.live.server_process import free_port
from reprise.retrieval.api.search_url import parse_search
from reprise.retrieval.remote.milvus_index import MilvusIndex
from reprise.retrieval.remote.milvus_removal import MilvusRemoval
from reprise.retrieval.remote.remote_index import RemoteError, RemoteRow

HOSTILE = 'acme" or namespace != "'


@pytest.fixture
def make_index(shared_milvus, request):
    made = []

    def make(*, embedder="e", dim=4):
        made.append(
            MilvusIndex(
                parse_search(shared_milvus.url),
                tokenizer_key=request.node.name,
                embedder=embedder,
                dim=dim,
                timeout_s=60.0,
            )
        )
        made[-1].open()
        return made[-1]

    yield make
    for index in made:
        index.close()


def unit(*values):
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def row(answer_id, vector, *, namespace="acme", created_s=100.0):
    return RemoteRow(namespace, answer_id, created_s, vector)


def ids(index, vector, *, namespace="acme", count=8):
    return [answer_id for answer_id, _ in index.search(namespace, vector[None], count)[0]]


def test_rows_are_found_by_vector_in_their_namespace_and_leave_it(make_index):
    index = make_index()
    x, y, z = unit(1, 0, 0, 0), unit(1, 1, 0, 0), unit(0, 0, 0, 1)
    index.upsert([row("x", x), row("y", y), row("z", z), row("x", x, namespace="other")])
    index.upsert([row("hostile", x, namespace=HOSTILE), row("n" * 200, x)])  # an id too long
    found = index.search("acme", np.stack([x, z]), 2)
    assert [answer_id for answer_id, _ in found[0]] == ["x", "y"]
    assert found[0][0][1] == pytest.approx(1.0, abs=1e-3)
    assert found[0][1][1] == pytest.approx(0.7071, abs=1e-3)
    assert found[1][0][0] == "z"
    assert ids(index, x, namespace=HOSTILE) == ["hostile"]
    assert ids(index, x, namespace="nobody") == []

    index.upsert([row("x", z)])  # replaced, not twice
    assert sorted(ids(index, x)) == ["x", "y", "z"]
    index.remove("other", ["y", "hostile", HOSTILE])
    assert sorted(ids(index, x)) == ["x", "y", "z"]
    index.remove("acme", ["y", "unknown"])
    assert sorted(ids(index, x)) == ["x", "z"]
    index.settle()
    index.remove_namespace("acme", created_until_s=math.inf)
    assert ids(index, x) == []
    assert ids(index, x, namespace="other") == ["x"]
    assert ids(index, x, namespace=HOSTILE) == ["hostile"]


def test_age_ends_rows_of_all_namespaces_and_models(make_index):
    index, other = make_index(), make_index(embedder="another")
    x = unit(1, 0, 0, 0)
    assert index.collection != other.collection
    index.upsert([row("old", x, created_s=99.0), row("new", x, created_s=101.0)])
    other.upsert([row("old", x, created_s=99.0), row("there", x, namespace="b", created_s=200.0)])
    index.remove_older(100.0)
    assert (ids(index, x), ids(other, x)) == (["new"], [])
    assert ids(other, x, namespace="b") == ["there"]
    # A tier's answers are of all models: whoever removes there need not know of which.
    index.remove("b", ["there"])
    assert ids(other, x, namespace="b") == []


def test_what_is_younger_than_the_removal_of_its_namespace_stays(make_index):
    index, x = make_index(), unit(1, 0, 0, 0)
    index.upsert([row("old", x, created_s=99.0), row("new", x, created_s=101.0)])
    index.upsert([row("old", x, created_s=99.0, namespace="other")])
    index.remove_namespace("acme", created_until_s=100.0)
    assert ids(index, x) == ["new"]
    assert ids(index, x, namespace="other") == ["old"]


def test_a_collection_of_another_schema_is_left_alone(make_index, shared_milvus):
    index = make_index()
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(uri=f"http://127.0.0.1:{shared_milvus.port}", dedicated=True)
    client.drop_collection(index.collection)
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("row_id", DataType.VARCHAR, is_primary=True, max_length=8)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    params = client.prepare_index_params()
    params.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 4})
    client.create_collection(index.collection, schema=schema, index_params=params)
    with pytest.raises(RemoteError, match="is of another schema: expected answer_id"):
        make_index()
    assert client.has_collection(index.collection)
    client.close()


@pytest.mark.skipif(not is_milvus_installed(), reason="no Milvus: pip install 'reprise[milvus]'")
def test_an_error_is_one_line_without_the_password(capfd, caplog):
    url = parse_search(f"milvus://me:secretword@127.0.0.1:{free_port()}")
    index = MilvusIndex(url, tokenizer_key="", embedder="", dim=4, timeout_s=0.2)
    with pytest.raises(RemoteError, match="not connected yet"):
        index.search("acme", unit(1, 0, 0, 0)[None], 1)
    began_s = time.monotonic()
    with pytest.raises(RemoteError, match=r"^milvus: ") as failure:
        index.open()
    assert time.monotonic() - began_s < 60  # of its own accord pymilvus tries on for longer
    assert "\n" not in str(failure.value)
    assert "secretword" not in str(failure.value)
    index.close()
    # pymilvus logs a traceback for each failed call, unless told not to.
    assert "Traceback" not in capfd.readouterr().err
    assert caplog.messages == []


def test_deployments_share_a_server_by_databases(monkeypatch):
    pymilvus = pytest.importorskip("pymilvus")
    opened = []
    monkeypatch.setattr(pymilvus, "MilvusClient", lambda **options: opened.append(options))
    MilvusRemoval(parse_search("milvus://host/blue"), timeout_s=1.0).open()
    assert opened[0]["db_name"] == "blue"
