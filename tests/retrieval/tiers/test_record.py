"""Records: round trips, and every way in which they can be damaged."""

import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.retrieval import Answer
from reprise.retrieval.tiers.record import (
    RecordError,
    RecordReader,
    _Fields,
    decode_record,
    encode_record,
)


def answer(**fields):
    values = {
        "prompt_token_ids": [1, 2, 65_535],
        "response_token_ids": list(range(300)),
        "namespace": "acme",
        "response_text": "ja" * 300,
        "exact_key": b"\x00\xff",
        "stop_reason": 7,
    }
    return Answer.create(**(values | fields))


@pytest.mark.parametrize("largest", [0, 65_535, 65_536, 151_935, 2**31 - 1])
def test_token_ids_of_any_width_come_back(largest):
    original = answer(prompt_token_ids=[0, largest], response_token_ids=[])
    assert decode_record(encode_record(original)) == original


@settings(max_examples=50, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 2**31 - 1), max_size=40),
    response=st.lists(st.integers(0, 70_000), max_size=400),
    text=st.text(max_size=300),
)
def test_any_answer_comes_back(prompt, response, text):
    original = answer(prompt_token_ids=prompt, response_token_ids=response, prompt_text=text)
    assert decode_record(encode_record(original)) == original


def test_compression_is_used_where_it_pays():
    assert len(encode_record(answer())) < 700
    noise = answer(response_text="", response_token_ids=[3, 1, 4])
    assert encode_record(noise)[3] == 0


def test_every_single_damaged_byte_is_noticed():
    record = encode_record(answer())
    for at in range(len(record)):
        damaged = record[:at] + bytes([record[at] ^ 0x40]) + record[at + 1 :]
        if at == 3:  # flags: other bits mean nothing, and the contents are still whole
            continue
        with pytest.raises(RecordError):
            decode_record(damaged)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 50])
def test_a_cut_record_is_noticed(cut):
    with pytest.raises(RecordError):
        decode_record(encode_record(answer())[:cut])


def test_another_version_is_refused():
    record = bytearray(encode_record(answer()))
    record[2] = 9
    with pytest.raises(RecordError, match="expected record version 1, got 9"):
        decode_record(bytes(record))


@pytest.mark.parametrize("body", [b"\x80", b"\x91\xa1x", b"\xc1", b""])
def test_well_summed_nonsense_is_refused(body):
    record = b"RA\x01\x00" + zlib.crc32(body).to_bytes(4, "little") + body
    with pytest.raises(RecordError):
        decode_record(record)


def test_the_reader_skips_counts_and_logs_once(caplog):
    reader = RecordReader("a tier")
    assert reader.read(b"pickle?", namespace="acme") is None
    assert reader.read(encode_record(answer()), namespace="other") is None
    original = answer()
    assert reader.read(encode_record(original), namespace="acme") == original
    assert reader.num_damaged == 2
    assert len(caplog.records) == 1


def test_a_text_without_encoding_is_refused():
    with pytest.raises(ValueError, match="surrogates"):
        encode_record(answer(prompt_text="\ud800"))


def test_a_record_of_an_earlier_version_is_read():
    """It holds the sampling fields, under which nobody looks answers up any more."""
    original = answer()
    values = [getattr(original, name, {"temperature": 0.0}) for name in _Fields.__struct_fields__]
    for name in ("prompt_tokens", "response_tokens"):
        at = _Fields.__struct_fields__.index(name)
        values[at] = b"\x04" + values[at]
    body = msgspec.msgpack.encode(values)
    record = b"RA\x01\x00" + zlib.crc32(body).to_bytes(4, "little") + body
    assert decode_record(record) == original
