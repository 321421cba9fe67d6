"""BERT models of sentences, as sentence-transformers computes them, without what that imports.

Importing sentence-transformers, with transformers' training and generation behind it, takes
several seconds of a core, and a server's first prompts wait for its embedding model. Most models
that people search with, all-MiniLM-L6-v2 among them, are BERT with an average over the tokens: a
page of code.

The model: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", 2018. The average over tokens: Reimers and Gurevych, "Sentence-BERT", 2019.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from reprise.retrieval.search.known_words import KnownWords

logger = logging.getLogger(__name__)
_WEIGHTS = "model.safetensors"
_TOKENIZER = "tokenizer.json"
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
# Names of older checkpoints.
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# In checkpoints, and of no use here.
_UNUSED = ("pooler.", "cls.", "embeddings.position_ids")


class _Shape(NamedTuple):
    """What a model's folder says of it."""

    config: Mapping[str, Any]
    """As in `config.json`."""
    pooling: str
    """`mean` over the tokens, or `cls`: the first one."""
    max_tokens: int
    """Of a text; what is beyond is cut off."""
    unknown: str
    """The token that stands for what has none."""


def load_bert(folder: Path, *, dtype: torch.dtype) -> BertNetwork | None:
    """Return the model in a folder; None: it is none of this kind, or is not all there."""
    try:
        shape = _shape_of(folder)
        if shape is None:
            return None
        network = BertNetwork(shape, Tokenizer.from_file(str(folder / _TOKENIZER)))
        network.load_state_dict(_weights_of(folder), strict=True, assign=True)
    except Exception as error:  # sentence-transformers may know what to do with it
        logger.debug("%s is not read as BERT: %s", folder, error)
        return None
    return network.to(dtype).eval()


class BertNetwork(nn.Module):
    """Texts to vectors. Parts are named as in checkpoints."""

    def __init__(self, shape: _Shape, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._pooling, self._tokenizer = shape.pooling, tokenizer
        self._unknown = shape.unknown
        tokenizer.no_padding()
        tokenizer.enable_truncation(shape.max_tokens)
        self.embeddings = _Embeddings(shape.config)
        self.encoder = _Encoder(shape.config)

    def words(self) -> KnownWords:
        """Return what languages it was made for."""
        return KnownWords(
            lambda text: self._tokenizer.encode(text, add_special_tokens=False).tokens,
            self._tokenizer.get_vocab(),
            unknown=self._unknown,
        )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 [n, dim], of no particular length each."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        longest = max(map(len, rows))
        token_ids = torch.zeros((len(rows), longest), dtype=torch.long)
        for number, ids in enumerate(rows):
            token_ids[number, : len(ids)] = torch.tensor(ids)
        lengths = torch.tensor([len(ids) for ids in rows])
        with torch.inference_mode():
            vectors: NDArray[np.float32] = self(token_ids, lengths).numpy()
        return vectors

    def forward(
        self,
        token_ids: Tensor,  # [n, longest] int64, padded with anything
        lengths: Tensor,  # [n] int64
    ) -> Tensor:  # [n, dim] float32
        """Compute the vectors of texts."""
        is_text = torch.arange(token_ids.shape[1]) < lengths[:, None]
        visible = None if bool(is_text.all()) else is_text[:, None, None, :]
        hidden: Tensor = self.encoder(self.embeddings(token_ids), visible).float()
        if self._pooling == "cls":
            return hidden[:, 0]
        return (hidden * is_text[:, :, None]).sum(1) / lengths[:, None]


class _Embeddings(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        dim = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], dim)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], dim)
        self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], dim)
        self.LayerNorm = _norm(config)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return [n, tokens, dim]."""
        hidden = self.word_embeddings(token_ids) + self.token_type_embeddings.weight[0]
        hidden = hidden + self.position_embeddings.weight[: token_ids.shape[1]]
        normalised: Tensor = self.LayerNorm(hidden)
        return normalised


class _Encoder(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        """Return [n, tokens, dim]; `visible`, bool [n, 1, 1, tokens], hides padding."""
        for layer in self.layer:
            hidden = layer(hidden, visible)
        return hidden


class _Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        dim, inner = config["hidden_size"], config["intermediate_size"]
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(dim, inner)
        self.output = _Output(inner, config)

    def forward(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        """Return [n, tokens, dim]."""
        hidden = self.attention(hidden, visible)
        result: Tensor = self.output(self.intermediate(hidden), hidden)
        return result


class _Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.self = _Heads(config)
        self.output = _Output(config["hidden_size"], config)

    def forward(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        """Return [n, tokens, dim]."""
        result: Tensor = self.output(self.self(hidden, visible), hidden)
        return result


class _Heads(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        dim = config["hidden_size"]
        self._num_heads = int(config["num_attention_heads"])
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        """Return [n, tokens, dim]."""
        query, key, value = (
            part(hidden).unflatten(-1, (self._num_heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        heads = scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return heads.transpose(1, 2).flatten(2)


class _Intermediate(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, inner)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [n, tokens, inner]."""
        return gelu(self.dense(hidden))


class _Output(nn.Module):
    def __init__(self, dim: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, config["hidden_size"])
        self.LayerNorm = _norm(config)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Return [n, tokens, dim]."""
        result: Tensor = self.LayerNorm(self.dense(hidden) + before)
        return result


def _norm(config: Mapping[str, Any]) -> nn.LayerNorm:
    return nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])


def _shape_of(folder: Path) -> _Shape | None:
    """Return what a folder says of its model; None: it is not one that is computed here.

    Raises:
        OSError, ValueError, KeyError, IndexError: A file is missing, or is not as it should be.
    """
    modules = _json(folder / "modules.json")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return None
    config = _json(folder / "config.json")
    is_plain = (
        config["model_type"] == "bert"
        and config["hidden_act"] == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
        and not config.get("add_cross_attention")
    )
    sentences = _json(folder / "sentence_bert_config.json")
    pooling = _pooling_of(_json(folder / modules[1]["path"] / "config.json"))
    if modules[0]["path"] or not is_plain or sentences.get("do_lower_case") or pooling is None:
        return None
    positions = int(config["max_position_embeddings"])
    unknown = _json(folder / "tokenizer_config.json").get("unk_token", "")
    return _Shape(
        config=config,
        pooling=pooling,
        max_tokens=min(positions, sentences.get("max_seq_length") or positions),
        unknown=str(unknown["content"] if isinstance(unknown, dict) else unknown),
    )


def _pooling_of(config: Mapping[str, Any]) -> str | None:
    """Return how a text's tokens become one vector; None: in a way that is not known here."""
    chosen = [name for name, is_on in config.items() if name.startswith("pooling_mode_") and is_on]
    named = config.get("pooling_mode")
    if named is not None:
        return named if not chosen and named in _POOLINGS.values() else None
    return _POOLINGS.get(chosen[0]) if len(chosen) == 1 else None


def _weights_of(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    weights = {}
    for name, tensor in load_file(folder / _WEIGHTS).items():
        name = name.removeprefix("bert.")
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        if not name.startswith(_UNUSED):
            weights[name] = tensor
    return weights


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())
