"""An answer as bytes: versioned, checksummed, compressed when that pays.

Layout: `RA`, version (1 byte), flags (1 byte: 1 = compressed), CRC-32 of the rest (4 bytes, little
endian), then the fields as a MessagePack array. Never pickle: what another program wrote under our
key is refused, not run.
"""

from __future__ import annotations

import logging
import zlib
from typing import Any

import msgspec
import numpy as np

from reprise.retrieval.api.answer import Answer

logger = logging.getLogger(__name__)
VERSION = 1
_MAGIC = b"RA"
_HEADER_BYTES = 8
_COMPRESSED = 1
# Below this, compression costs more time than the bytes are worth.
_COMPRESS_FROM_BYTES = 512
# A damaged length must not make the reader allocate without bound.
_MAX_RECORD_BYTES = 64 << 20
# So many damaged ones are told apart, and counted.
_MAX_COUNTED = 1 << 20


class RecordError(ValueError):
    """These bytes are no record of ours, of this version, undamaged."""


class _Fields(msgspec.Struct, array_like=True, frozen=True):
    answer_id: str
    namespace: str
    model_key: str
    prompt_tokens: bytes
    response_tokens: bytes
    prompt_text: str
    response_text: str
    finish_reason: str | None
    stop_reason: int | str | None
    sampling: dict[str, Any]
    """An earlier version's: written empty, not read."""
    exact_key: bytes | None
    tokenizer_key: str
    created_s: float
    uses: int
    accepted_tokens: int
    embedding: bytes
    embedder: str
    # Earlier versions read records with these, and write none.
    fingerprint: str = ""
    expires_s: float | None = None
    verifiable: bool = False


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Fields)


def encode_record(answer: Answer) -> bytes:
    """Return the answer as a record.

    Raises:
        ValueError: A text of it has no encoding.
    """
    values = msgspec.structs.asdict(answer)
    values["prompt_tokens"] = _narrow(answer.prompt_tokens)
    values["response_tokens"] = _narrow(answer.response_tokens)
    body = _ENCODER.encode(_Fields(sampling={}, **values))
    flags = 0
    if len(body) >= _COMPRESS_FROM_BYTES:
        smaller = zlib.compress(body, level=1)
        if len(smaller) < 0.9 * len(body):
            body, flags = smaller, _COMPRESSED
    return _MAGIC + bytes((VERSION, flags)) + zlib.crc32(body).to_bytes(4, "little") + body


def decode_record(record: bytes) -> Answer:
    """Return the answer in a record.

    Raises:
        RecordError: Damaged, of another version, or not ours.
    """
    if not isinstance(record, bytes) or len(record) < _HEADER_BYTES or record[:2] != _MAGIC:
        # Not its beginning: what is no record may still be a secret.
        raise RecordError(f"expected a record, got {type(record).__name__} of another kind")
    version, flags = record[2], record[3]
    if version != VERSION:
        raise RecordError(f"expected record version {VERSION}, got {version}")
    body = record[_HEADER_BYTES:]
    if zlib.crc32(body) != int.from_bytes(record[4:8], "little"):
        raise RecordError("checksum does not match")
    try:
        if flags & _COMPRESSED:
            body = zlib.decompressobj().decompress(body, _MAX_RECORD_BYTES)
        fields = _DECODER.decode(body)
        values = msgspec.structs.asdict(fields)
        del values["sampling"]
        values["prompt_tokens"] = _widen(fields.prompt_tokens)
        values["response_tokens"] = _widen(fields.response_tokens)
        return Answer(**values)
    except (zlib.error, msgspec.MsgspecError, ValueError) as error:
        raise RecordError(f"unreadable record: {error}") from error


class RecordReader:
    """Decodes records, skipping those that cannot be read: each counted once, the first logged.

    Args:
        where: Names the tier in the log.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._damaged: set[int] = set()

    @property
    def num_damaged(self) -> int:
        """Return the number of different records that could not be read."""
        return len(self._damaged)

    def read(self, record: bytes, *, namespace: str) -> Answer | None:
        """Return the answer, or None if it is damaged, no record, or of another namespace."""
        try:
            answer = decode_record(record)
            if answer.namespace != namespace:
                raise RecordError("it belongs to another namespace")
        except RecordError as error:
            is_first = not self._damaged
            if len(self._damaged) < _MAX_COUNTED:
                self._damaged.add(hash((namespace, record)))
            if is_first:
                logger.warning(
                    "Skipping a record in %s: %s. Further ones are only counted.",
                    self._where,
                    error,
                )
            return None
        return answer


def _narrow(tokens: bytes) -> bytes:
    """Pack int32 bytes as width byte (2 or 4) + ids: most vocabularies' ids fit 16 bits."""
    ids = np.frombuffer(tokens, dtype="<i4")
    if ids.size == 0 or int(ids.max()) < 1 << 16:
        return b"\x02" + ids.astype("<u2").tobytes()
    return b"\x04" + tokens


def _widen(tokens: bytes) -> bytes:
    if tokens[:1] == b"\x02":
        return np.frombuffer(tokens[1:], dtype="<u2").astype("<i4").tobytes()
    if tokens[:1] == b"\x04" and len(tokens) % 4 == 1:
        return tokens[1:]
    raise RecordError("token ids are of unknown width")
