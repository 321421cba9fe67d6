"""Near answers in shared memory: one process writes, any number read, nobody locks.

    header       64 bytes: magic, layout version, number of slots, bytes of the token map, number
                 of results published so far
    request map  slots of 32 bytes: digest of a request id, position of its entry, CRC-32
    token map    a ring of entries: length, CRC-32, contents

An entry is either a request's list of near answers or one answer's token ids; the lists refer to
the latter by position, so that an answer that is near to many requests is there once. Positions
only grow: an entry lies at `position % bytes`. The CRC covers the position too, and entries name
the request or answer that they are for; so whatever a reader finds that is half written,
overwritten or left by a writer that was killed, it takes for absent, never for another's.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from reprise.retrieval.api.answer import digest
from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.host.shared_block import attach_block, create_block, unlink_blocks

_MAGIC = b"REPRISE\0"
_LAYOUT = 4
_HEADER = struct.Struct("<8sIIQ")
_PUBLISHED = struct.Struct("<Q")
_HEADER_BYTES = 64
_SLOT = struct.Struct("<16sQI4x")
_ENTRY = struct.Struct("<II")
_PROBES = 8
_MAX_REMEMBERED = 50_000


class _Hit(msgspec.Struct, array_like=True, frozen=True):
    answer_id: str
    similarity: float
    clause: int
    position: int


class _RequestEntry(msgspec.Struct, array_like=True, frozen=True):
    request_id: str
    namespace: str
    hits: list[_Hit]
    found_s: float
    """When it was published: `time.monotonic` is one clock for all processes of a machine."""
    clauses: list[FoundClause] = []


class _AnswerEntry(msgspec.Struct, array_like=True, frozen=True):
    answer_id: str
    namespace: str
    prompt_tokens: bytes
    response_tokens: bytes


_ENCODER = msgspec.msgpack.Encoder()
_REQUEST_DECODER = msgspec.msgpack.Decoder(_RequestEntry)
_ANSWER_DECODER = msgspec.msgpack.Decoder(_AnswerEntry)


class _Place(NamedTuple):
    """Where an entry lies in the ring, by positions."""

    begin: int
    end: int


class ResultWriter:
    """The only writer of a block, which it creates; one thread at a time.

    Args:
        prefix: Of the block's name.
        num_slots: Requests whose results are kept, about.
        num_bytes: Of the token map.
    """

    def __init__(self, prefix: str, *, num_slots: int = 8192, num_bytes: int = 64 << 20) -> None:
        self._ring = _HEADER_BYTES + (num_slots + _PROBES) * _SLOT.size
        self._num_slots, self._num_bytes = num_slots, num_bytes
        self._block = create_block(prefix, self._ring + num_bytes)
        # Position 0 means an empty slot.
        self._head = 8
        self._num_published = 0
        self._positions: dict[tuple[str, str], list[_Place]] = {}
        """Of each answer, oldest first, until they are overwritten."""
        self._copies: deque[tuple[_Place, tuple[str, str]]] = deque()
        """The same, in the order of the ring."""
        self._questions: deque[tuple[_Place, str]] = deque()
        """Entries with words of a question, and their namespaces, in the order of the ring."""
        self._memory[: _HEADER.size] = _HEADER.pack(_MAGIC, _LAYOUT, num_slots, num_bytes)

    @property
    def name(self) -> str:
        """By which readers attach."""
        return self._block.name

    def publish(
        self,
        request_id: str,
        near_answers: Sequence[NearAnswer],
        *,
        namespace: str,
        clauses: Sequence[FoundClause] = (),
    ) -> None:
        """Make a request's near answers, and the clauses of its question, readable; answers too
        long for the map are left out."""
        hits = []
        for answer in near_answers:
            position = self._answer_position(answer)
            if position is not None:
                hits.append(_Hit(answer.answer_id, answer.similarity, answer.clause, position))
        entry = _ENCODER.encode(
            _RequestEntry(request_id, namespace, hits, time.monotonic(), list(clauses))
        )
        position = self._append(entry)
        if position is None:
            return
        if clauses:
            self._questions.append((_Place(position, self._head), namespace))
            self._drop_oldest_question()
        key = digest(request_id.encode())
        slot = self._slot_for(key)
        self._memory[slot : slot + _SLOT.size] = _pack_slot(key, position)
        self._num_published += 1
        _PUBLISHED.pack_into(self._memory, _HEADER.size, self._num_published)

    def close(self) -> None:
        """Release the block and remove its name."""
        self._block.close()
        unlink_blocks(self._block.name)

    @property
    def _memory(self) -> memoryview:
        return self._block.buf

    def remove(self, keys: Iterable[tuple[str, str]]) -> None:
        """Overwrite all copies of answers (namespace, id): who reads them finds nothing."""
        for key in keys:
            for place in self._positions.pop(key, ()):
                self._blank(place)

    def erase(self, keys: Iterable[tuple[str, str]]) -> None:
        """Remove answers (namespace, id), and the words of questions in their namespaces."""
        keys = tuple(keys)
        self.remove(keys)
        namespaces = {namespace for namespace, _ in keys}
        questions, self._questions = self._questions, deque()
        for place, namespace in questions:
            if namespace in namespaces:
                self._forget_clauses(place)
            else:
                self._questions.append((place, namespace))

    def _forget_clauses(self, place: _Place) -> None:
        """Overwrite a request's entry; another one, without the words of its question, takes its
        place if the request may have yet to read it."""
        # Of older ones nobody reads the near answers any more, and what is written takes room.
        if self._head - place.begin < self._num_bytes // 8:
            self._replace_without_clauses(place)
        self._blank(place)

    def _replace_without_clauses(self, place: _Place) -> None:
        at = self._ring + place.begin % self._num_bytes
        contents = self._memory[at + _ENTRY.size : at + place.end - place.begin]
        entry = _REQUEST_DECODER.decode(contents)
        key = digest(entry.request_id.encode())
        slot = self._slot_for(key)
        if bytes(self._memory[slot : slot + _SLOT.size]) == _pack_slot(key, place.begin):
            position = self._append(_ENCODER.encode(msgspec.structs.replace(entry, clauses=[])))
            assert position is not None  # it is shorter than the one before
            self._memory[slot : slot + _SLOT.size] = _pack_slot(key, position)

    def _drop_oldest_question(self) -> None:
        """Remember none that is overwritten, and not too many: none lies there unremembered."""
        while self._questions:
            place, _ = self._questions[0]
            if place.end > self._head - self._num_bytes:
                if len(self._questions) <= _MAX_REMEMBERED:
                    return
                self._blank(place)
            self._questions.popleft()

    def _blank(self, place: _Place) -> None:
        """Overwrite an entry's contents, as far as nothing else lies there by now. Its checksum
        stays, and fits nothing any more."""
        begin = max(place.begin + _ENTRY.size, self._head - self._num_bytes)
        if begin < place.end:
            at = self._ring + begin % self._num_bytes
            self._memory[at : at + place.end - begin] = bytes(place.end - begin)

    def _answer_position(self, answer: NearAnswer) -> int | None:
        key = (answer.namespace, answer.answer_id)
        places = self._positions.get(key)
        # Half a ring ahead, so that readers have time before it is overwritten.
        if places and self._head - places[-1].begin < self._num_bytes // 2:
            return places[-1].begin
        position = self._append(
            _ENCODER.encode(
                _AnswerEntry(
                    answer.answer_id,
                    answer.namespace,
                    answer.prompt_token_ids.astype("<i4").tobytes(),
                    answer.response_token_ids.astype("<i4").tobytes(),
                )
            )
        )
        if position is not None:
            place = _Place(position, self._head)
            self._positions.setdefault(key, []).append(place)
            self._copies.append((place, key))
            self._drop_oldest()
        return position

    def _drop_oldest(self) -> None:
        """Remember no copy that is overwritten, and not too many: none lies there unremembered."""
        while self._copies:
            place, key = self._copies[0]
            is_overwritten = place.end <= self._head - self._num_bytes
            if not is_overwritten and len(self._copies) <= _MAX_REMEMBERED:
                return
            self._copies.popleft()
            places = self._positions.get(key, [])
            if place in places:
                places.remove(place)
                self._blank(place)
                if not places:
                    del self._positions[key]

    def _append(self, contents: bytes) -> int | None:
        """Return the position of a new entry; None if it is too long."""
        needed = _ENTRY.size + len(contents)
        # One result must not push the answers it refers to out of the ring.
        if needed > self._num_bytes // 64:
            return None
        room = self._num_bytes - self._head % self._num_bytes
        position = self._head if needed <= room else self._head + room
        if position != self._head:
            # What is skipped counts as overwritten.
            gap = self._ring + self._head % self._num_bytes
            self._memory[gap : gap + room] = bytes(room)
        at = self._ring + position % self._num_bytes
        self._memory[at : at + _ENTRY.size] = _ENTRY.pack(
            len(contents), _checksum(contents, position)
        )
        self._memory[at + _ENTRY.size : at + needed] = contents
        self._head = position + needed
        return position

    def _slot_for(self, key: bytes) -> int:
        first = _first_slot(key, self._num_slots)
        slots = [first + i * _SLOT.size for i in range(_PROBES)]
        found = [_SLOT.unpack_from(self._memory, slot) for slot in slots]
        for slot, (digest_there, _, _) in zip(slots, found, strict=True):
            if digest_there == key:
                return slot
        oldest = min(range(_PROBES), key=lambda i: found[i][1])
        return slots[oldest]


class ResultReader:
    """Reads another process's block.

    Raises:
        OSError: There is no such block.
        ValueError: It is not one of ours, or of another layout.
    """

    def __init__(self, name: str) -> None:
        self.num_unreadable = 0
        self._block = attach_block(name)
        magic, layout, self._num_slots, self._num_bytes = _HEADER.unpack_from(self._memory)
        if magic != _MAGIC or layout != _LAYOUT:
            self._block.close()
            raise ValueError(f"expected a block of layout {_LAYOUT}, got {magic!r} {layout}")
        self._ring = _HEADER_BYTES + (self._num_slots + _PROBES) * _SLOT.size

    @property
    def num_published(self) -> int:
        """Results published so far."""
        return int(_PUBLISHED.unpack_from(self._memory, _HEADER.size)[0])

    def read(self, request_id: str) -> list[NearAnswer] | None:
        """Return the request's near answers, without those that are no longer there; None: no
        result."""
        entry = self._request_entry(request_id)
        if not isinstance(entry, _RequestEntry):
            return entry
        return [
            near_answer
            for hit in entry.hits
            if (near_answer := self._near_answer(entry.namespace, hit))
        ]

    def found_s(self, request_id: str) -> float | None:
        """Return when the request's result was published, in seconds of `time.monotonic`; None: no
        result, or an unreadable one."""
        entry = self._request_entry(request_id)
        return entry.found_s if isinstance(entry, _RequestEntry) else None

    def clauses(self, request_id: str) -> list[FoundClause]:
        """Return the clauses of the request's question; none without a result."""
        entry = self._request_entry(request_id)
        return entry.clauses if isinstance(entry, _RequestEntry) else []

    def close(self) -> None:
        """Release the block."""
        self._block.close()

    @property
    def _memory(self) -> memoryview:
        return self._block.buf

    def _request_entry(self, request_id: str) -> _RequestEntry | list[NearAnswer] | None:
        """Return the request's entry; None: no result; no near answers: an unreadable one."""
        key = digest(request_id.encode())
        first = _first_slot(key, self._num_slots)
        slots = bytes(self._memory[first : first + _PROBES * _SLOT.size])
        at = slots.find(key)
        if at < 0 or at % _SLOT.size:
            return None
        _, position, _ = _SLOT.unpack_from(slots, at)
        if slots[at : at + _SLOT.size] != _pack_slot(key, position):
            return None  # half written: there the next time
        contents = self._entry(position)
        if contents is None:
            return []
        try:
            entry = _REQUEST_DECODER.decode(contents)
        except msgspec.MsgspecError:
            return self._unreadable()
        return entry if entry.request_id == request_id else self._unreadable()

    def _near_answer(self, namespace: str, hit: _Hit) -> NearAnswer | None:
        contents = self._entry(hit.position)
        if contents is None:
            return None
        try:
            answer = _ANSWER_DECODER.decode(contents)
        except msgspec.MsgspecError:
            self._unreadable()
            return None
        if answer.answer_id != hit.answer_id or answer.namespace != namespace:
            self._unreadable()
            return None
        return NearAnswer(
            answer_id=answer.answer_id,
            similarity=hit.similarity,
            prompt_token_ids=np.frombuffer(answer.prompt_tokens, dtype="<i4"),
            response_token_ids=np.frombuffer(answer.response_tokens, dtype="<i4"),
            clause=hit.clause,
            namespace=namespace,
        )

    def _entry(self, position: int) -> bytes | None:
        offset = position % self._num_bytes
        if offset + _ENTRY.size > self._num_bytes:
            self._unreadable()
            return None
        at = self._ring + offset
        length, checksum = _ENTRY.unpack_from(self._memory, at)
        if offset + _ENTRY.size + length > self._num_bytes:
            self._unreadable()
            return None
        contents = bytes(self._memory[at + _ENTRY.size : at + _ENTRY.size + length])
        if _checksum(contents, position) != checksum:
            self._unreadable()
            return None
        return contents

    def _unreadable(self) -> list[NearAnswer]:
        self.num_unreadable += 1
        return []


def _first_slot(key: bytes, num_slots: int) -> int:
    return _HEADER_BYTES + int.from_bytes(key[:8], "little") % num_slots * _SLOT.size


def _pack_slot(key: bytes, position: int) -> bytes:
    return _SLOT.pack(key, position, zlib.crc32(key + position.to_bytes(8, "little")))


def _checksum(contents: bytes, position: int) -> int:
    return zlib.crc32(contents, zlib.crc32(position.to_bytes(8, "little")))
