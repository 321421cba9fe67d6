"""An answer: a finished (prompt, response) pair."""

from __future__ import annotations

import contextlib
import hashlib
from array import array as array_of_c

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from reprise.retrieval.api.namespace import check_namespace
from reprise.retrieval.host.steady_clock import now_s

IntArray = NDArray[np.int32]

EXACT_PREFIX = "exact:"
"""Begins the names in a tier of answers for exact hits."""
PROMPT_END = 512
"""Tokens of a prompt that updates carry: its end, where the question is."""


def token_bytes(token_ids: ArrayLike) -> bytes:
    """Return token ids (any integer type, [n]) as little-endian int32 bytes.

    Raises:
        ValueError: Not one-dimensional, not integers, or outside [0, 2**31).
    """
    if isinstance(token_ids, list):
        # A third of the time that NumPy takes to make of a list what follows; prompts of 128k
        # tokens are keyed and stored on an event loop.
        with contextlib.suppress(TypeError, OverflowError):  # then it is NumPy's turn
            token_ids = np.frombuffer(array_of_c("i", token_ids), dtype=np.intc)
    array = np.asarray(token_ids)
    if array.size == 0:
        return b""
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"token ids must be one-dimensional integers, got {array.dtype} {array.shape}"
        )
    if int(array.min()) < 0 or int(array.max()) >= 2**31:
        raise ValueError(f"token ids must lie in [0, 2**31), got {array.min()}..{array.max()}")
    return array.astype("<i4", copy=False).tobytes()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One finished (prompt, response) pair; make it with `Answer.create`.

    Token ids are held as little-endian int32 bytes (hashable, compact) and read through
    `prompt_token_ids` and `response_token_ids`.
    """

    answer_id: str
    namespace: str
    model_key: str
    prompt_tokens: bytes
    response_tokens: bytes
    prompt_text: str = ""
    """What is embedded: the query. Empty: taken from the prompt's token ids when it joins."""
    response_text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    exact_key: bytes | None = None
    """By which the front end serves it verbatim; None: it is only drafted from."""
    tokenizer_key: str = ""
    """Drafts only for requests of the same tokenizer."""
    created_s: float = 0.0
    uses: int = 0
    accepted_tokens: int = 0
    embedding: bytes = b""
    """float16 [dim], L2-normalised, of `prompt_text` by `embedder`; empty: not embedded yet."""
    embedder: str = ""
    fingerprint: str = ""
    """Names all that determined it. Set where it lies in a tier for exact hits, under its exact
    key, and is not drafted from."""
    expires_s: float | None = None
    """When it stops to be an exact hit, in seconds since 1970; None: when its tier says."""
    verifiable: bool = False
    """For exact hits: the most probable tokens alone made it, so that a model can verify it."""

    @classmethod
    def create(
        cls,
        *,
        prompt_token_ids: ArrayLike,
        response_token_ids: ArrayLike,
        namespace: str = "",
        model_key: str = "",
        answer_id: str | None = None,
        prompt_text: str = "",
        response_text: str = "",
        finish_reason: str | None = None,
        stop_reason: int | str | None = None,
        exact_key: bytes | None = None,
        tokenizer_key: str = "",
        created_s: float | None = None,
    ) -> Answer:
        """Build an answer from token ids [p] and [r] (any integer type).

        Without `answer_id` it is named after its contents, so that the same answer stored
        twice, or by two replicas, is one answer.

        Raises:
            ValueError: A bad namespace or bad token ids.
        """
        check_namespace(namespace)
        prompt, response = token_bytes(prompt_token_ids), token_bytes(response_token_ids)
        return cls(
            answer_id=answer_id or content_id(namespace, model_key, prompt, response),
            namespace=namespace,
            model_key=model_key,
            prompt_tokens=prompt,
            response_tokens=response,
            prompt_text=prompt_text,
            response_text=response_text,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            exact_key=exact_key,
            tokenizer_key=tokenizer_key,
            created_s=now_s() if created_s is None else created_s,
        )

    @property
    def stored_id(self) -> str:
        """Name in a tier: the exact key of an answer for exact hits, the id of any other."""
        if self.fingerprint and self.exact_key is not None:
            return exact_id(self.exact_key)
        return self.answer_id

    @property
    def prompt_token_ids(self) -> IntArray:
        """int32 [p], read-only."""
        return np.frombuffer(self.prompt_tokens, dtype="<i4")

    @property
    def response_token_ids(self) -> IntArray:
        """int32 [r], read-only."""
        return np.frombuffer(self.response_tokens, dtype="<i4")

    @property
    def num_bytes(self) -> int:
        """Bytes that the contents take, plus the fixed cost of holding them."""
        return (
            len(self.prompt_tokens)
            + len(self.response_tokens)
            + len(self.prompt_text.encode())
            + len(self.response_text.encode())
            + len(self.embedding)
            + 1024
        )


class AnswerUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """An answer joined or left a namespace's corpus; one that left has no tokens."""

    answer_id: str
    namespace: str
    added: bool
    prompt_tokens: bytes = b""
    """The last `PROMPT_END` of the prompt."""
    response_tokens: bytes = b""

    @classmethod
    def addition(cls, answer: Answer) -> AnswerUpdate:
        """Say that this answer joined."""
        return cls(
            answer_id=answer.answer_id,
            namespace=answer.namespace,
            added=True,
            prompt_tokens=answer.prompt_tokens[-4 * PROMPT_END :],
            response_tokens=answer.response_tokens,
        )

    @classmethod
    def removal(cls, namespace: str, answer_id: str) -> AnswerUpdate:
        """Say that the answer of this id left."""
        return cls(answer_id=answer_id, namespace=namespace, added=False)

    @property
    def prompt_token_ids(self) -> IntArray:
        """int32 [p], read-only: the end of the prompt."""
        return np.frombuffer(self.prompt_tokens, dtype="<i4")

    @property
    def response_token_ids(self) -> IntArray:
        """int32 [r], read-only."""
        return np.frombuffer(self.response_tokens, dtype="<i4")


def exact_id(exact_key: bytes) -> str:
    """Return the name in a tier of the answer for exact hits under this key."""
    return EXACT_PREFIX + exact_key.hex()


def content_id(namespace: str, model_key: str, prompt: bytes, response: bytes) -> str:
    """Return 32 hexadecimal digits that name this content in this namespace."""
    return digest(namespace.encode(), model_key.encode(), prompt, response).hex()


def digest(*parts: bytes, size: int = 16) -> bytes:
    """Return BLAKE2b of the parts, each preceded by its length, so that no two lists collide."""
    hasher = hashlib.blake2b(digest_size=size)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()
