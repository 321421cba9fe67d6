"""Digests of weights: whatever changes in a file changes them, wherever the file lies."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from reprise.engine_ext.core.weights_digest import (
    cached_weights_digest,
    digest_files,
    digest_weights,
    model_files,
)

TENSORS = {"layer.0": ("F32", [64, 64]), "layer.1": ("F32", [8, 16]), "empty": ("F32", [0])}


def write_safetensors(
    path: Path, tensors: dict[str, tuple[str, list[int]]], *, fill: int = 1
) -> None:
    """A file of float32 tensors, by the format's definition."""
    header, begin = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    encoded = json.dumps(header).encode()
    data = bytes((fill + index) % 251 for index in range(begin))
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    return path


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_the_same_content_elsewhere_under_another_name_is_the_same(
    weights: Path, tmp_path: Path
) -> None:
    before = digest_weights([weights])
    copy = tmp_path / "elsewhere" / "other.safetensors"
    copy.parent.mkdir()
    shutil.copy(weights, copy)
    assert digest_weights([copy]) == before
    # Neither does it matter how tensors are shared out among files, or in which order.
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_safetensors(first, {"a": ("F32", [4])})
    write_safetensors(second, {"b": ("F32", [4])})
    assert digest_weights([first, second]) == digest_weights([second, first])


@pytest.mark.parametrize(
    "tensors",
    [
        {**TENSORS, "layer.1": ("F32", [16, 8])},
        {**TENSORS, "layer.1": ("I32", [8, 16])},
        {("layer.9" if name == "layer.1" else name): value for name, value in TENSORS.items()},
        {**TENSORS, "more": ("F32", [0])},
        {"layer.0": TENSORS["layer.0"], "empty": TENSORS["empty"]},
    ],
    ids=["shape", "data type", "name", "one more", "one less"],
)
def test_what_a_header_says_counts(
    weights: Path, tmp_path: Path, tensors: dict[str, tuple[str, list[int]]]
) -> None:
    other = tmp_path / "other.safetensors"
    write_safetensors(other, tensors)
    assert digest_weights([other]) != digest_weights([weights])


def test_every_byte_of_small_weights_counts(weights: Path) -> None:
    whole = digest_weights([weights])
    data_bytes = 64 * 64 * 4 + 8 * 16 * 4
    for place in range(1, data_bytes + 1, 997):
        flip(weights, -place)
        assert digest_weights([weights]) != whole, place
        flip(weights, -place)
    assert digest_weights([weights]) == whole


def test_large_weights_are_sampled_in_every_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {f"layer.{number}": ("F32", [512, 512]) for number in range(3)}
    write_safetensors(path, tensors)
    sampled = digest_weights([path], sampled_bytes=1 << 17)
    assert sampled == digest_weights([path], sampled_bytes=1 << 17)
    tensor_bytes = 512 * 512 * 4
    for number in range(3):
        for place in (1, tensor_bytes):  # the last byte of a tensor, and the first
            flip(path, -(number * tensor_bytes + place))
            assert digest_weights([path], sampled_bytes=1 << 17) != sampled
            flip(path, -(number * tensor_bytes + place))


@pytest.mark.parametrize("suffix", [".bin", ".gguf"])
def test_other_formats_count_by_their_bytes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(bytes(range(200)))
    before = digest_weights([path])
    flip(path, 100)
    assert digest_weights([path]) != before


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_absurd_length(path: Path) -> None:
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")


def no_header(path: Path) -> None:
    path.write_bytes((4).to_bytes(8, "little") + b"nope")


def other_header(path: Path) -> None:
    path.write_bytes((8).to_bytes(8, "little") + b'{"a": 1}')


@pytest.mark.parametrize("damage", [damaged, of_absurd_length, no_header, other_header])
def test_a_damaged_file_has_no_digest(weights: Path, damage: object) -> None:
    damage(weights)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"safetensors|Expecting|ends too early"):
        digest_weights([weights])


def test_the_digest_is_remembered_until_the_file_changes(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "reprise"
    first = cached_weights_digest([weights], folder)
    (cache,) = folder.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    module = "reprise.engine_ext.core.weights_digest"
    with monkeypatch.context() as patched:
        patched.setattr(f"{module}.digest_weights", lambda _: pytest.fail("read again"))
        assert cached_weights_digest([weights], folder) == first
    # Same size, and the time set back: the file system knows better.
    stat = weights.stat()
    flip(weights, -5)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cached_weights_digest([weights], folder) != first
    cache.write_text("{")
    assert cached_weights_digest([weights], folder) == digest_weights([weights])


def test_a_cache_that_cannot_be_written_costs_time_only(weights: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert cached_weights_digest([weights], in_the_way / "reprise") == digest_weights([weights])


def test_sixteen_gigabytes_take_less_than_two_seconds(tmp_path: Path) -> None:
    """A file of holes reads as fast as one in the page cache."""
    path = tmp_path / "model.safetensors"
    rows = 300
    size = (16 << 30) // rows // 4 * 4
    header = {
        f"layer.{n}": {
            "dtype": "F32",
            "shape": [size // 4],
            "data_offsets": [n * size, n * size + size],
        }
        for n in range(rows)
    }
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    os.truncate(path, 8 + len(encoded) + rows * size)
    took_s = []
    for _ in range(3):  # others may have the cores meanwhile, and this process things to tidy up
        began_s = time.thread_time()
        digest_weights([path])
        took_s.append(time.thread_time() - began_s)
        if took_s[-1] < 2.0:
            return
    pytest.fail(f"it took {took_s} s")


def test_files_that_say_how_a_model_speaks_count_by_name_and_bytes(tmp_path: Path) -> None:
    for name in ("config.json", "chat_template.jinja", "tokenizer.model", "README.md", "w.bin"):
        (tmp_path / name).write_text(name)
    weights, others = model_files(tmp_path)
    assert [path.name for path in weights] == ["w.bin"]
    assert [path.name for path in others] == [
        "chat_template.jinja",
        "config.json",
        "tokenizer.model",
    ]
    before = digest_files(others)
    (tmp_path / "chat_template.jinja").write_text("CHAT_template.jinja")
    assert digest_files(others) != before
    (tmp_path / "chat_template.jinja").write_text("chat_template.jinja")
    assert digest_files(others) == before
    assert digest_files(others[1:]) != before
    assert model_files(tmp_path / "w.bin") == ([tmp_path / "w.bin"], [])
