"""Fingerprints: any input that changes an output changes them, and where a model lies does not."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from reprise.engine_ext.core import fingerprint
from reprise.engine_ext.core.fingerprint import (
    CONFIG_FIELDS,
    FingerprintError,
    adapter_fingerprint,
    environment_of,
    fingerprint_of,
)

FILES = {
    "config.json": b'{"hidden_size": 8}',
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
    "chat_template.jinja": b"{{ messages }}",
    "modeling_ours.py": b"x = 1",
}
WEIGHTS = (2).to_bytes(8, "little") + b"{}"


class HfConfig:
    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def to_dict(self) -> dict[str, Any]:
        return dict(self.fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    for name, data in FILES.items():
        (made / name).write_bytes(data)
    (made / "model.safetensors").write_bytes(WEIGHTS)
    return made


def config_of(folder: Path) -> Any:
    sections = {
        section: SimpleNamespace(**{name: f"{section}.{name}" for name in names})
        for section, names in CONFIG_FIELDS.items()
    }
    sections["load_config"].download_dir = None
    model = sections["model_config"]
    model.model = model.tokenizer = str(folder)
    model.revision = model.tokenizer_revision = None
    model.hf_config = HfConfig(
        hidden_size=8, rope={"theta": 1.0}, dtype=torch.bfloat16, _name_or_path=str(folder)
    )
    return SimpleNamespace(**sections)


def of(config: Any) -> str:
    return fingerprint_of(config, loaded_since_s=time.time() + 1, cache_folder=None)


def test_the_same_content_in_another_folder_is_the_same(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    assert of(config_of(elsewhere)) == of(config_of(folder)) == of(config_of(folder))
    (elsewhere / "README.md").write_text("says nothing")
    assert of(config_of(elsewhere)) == of(config_of(folder))


@pytest.mark.parametrize("name", [*FILES, "model.safetensors"])
def test_every_file_counts(folder: Path, name: str) -> None:
    before = of(config_of(folder))
    is_weights = name == "model.safetensors"
    (folder / name).write_bytes(_with_a_tensor() if is_weights else b'{"a": 1}')
    assert of(config_of(folder)) != before


def _with_a_tensor() -> bytes:
    header = b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}'
    return len(header).to_bytes(8, "little") + header + b"ab"


def test_a_file_more_or_less_counts(folder: Path) -> None:
    before = of(config_of(folder))
    (folder / "added_tokens.json").write_text("{}")
    more = of(config_of(folder))
    (folder / "added_tokens.json").unlink()
    (folder / "modeling_ours.py").unlink()
    assert len({before, more, of(config_of(folder))}) == 3


@pytest.mark.parametrize(
    ("section", "name"), [(s, name) for s, names in CONFIG_FIELDS.items() for name in names]
)
def test_every_setting_counts(folder: Path, section: str, name: str) -> None:
    config = config_of(folder)
    before = of(config)
    setattr(getattr(config, section), name, "another")
    assert of(config) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.fields.update(hidden_size=9),
        lambda config: config.fields.update(rope={"theta": 2.0}),
        lambda config: config.fields.update(dtype=torch.float16),
        lambda config: config.fields.update(more=None),
    ],
)
def test_the_models_configuration_counts(folder: Path, change: Callable[[HfConfig], None]) -> None:
    config = config_of(folder)
    before = of(config)
    change(config.model_config.hf_config)
    assert of(config) != before


def test_another_tokenizer_counts(folder: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    config = config_of(folder)
    before = of(config)
    config.model_config.tokenizer = str(tokenizer)
    assert of(config) != before


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("_software", {"vllm": "0"}),
        ("_device", {"name": "another"}),
        ("environment_of", {"VLLM_BATCH_INVARIANT": "1"}),
        ("_LAYOUT", "another"),
    ],
)
def test_software_device_and_environment_count(
    folder: Path, part: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of(config_of(folder))
    changed = value if part == "_LAYOUT" else lambda *_: value
    monkeypatch.setattr(fingerprint, part, changed)
    assert of(config_of(folder)) != before


def test_the_instruction_set_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(config_of(folder))
    monkeypatch.setattr(fingerprint, "_cpu_flags", lambda: ["avx2"])
    assert of(config_of(folder)) != before


def test_variables_count_unless_they_only_say_where_things_are() -> None:
    found = environment_of(
        {
            "VLLM_CPU_ATTN_SPLIT_KV": "0",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "VLLM_API_KEY": "secret",
            "VLLM_CACHE_ROOT": "/a",
            "VLLM_PORT": "1",
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "HOME": "/b",
        }
    )
    assert found == {"VLLM_CPU_ATTN_SPLIT_KV": "0", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def no_weights(config: Any) -> None:
    (Path(config.model_config.model) / "model.safetensors").unlink()


def dummy_weights(config: Any) -> None:
    config.load_config.load_format = "dummy"


def in_a_bucket(config: Any) -> None:
    config.model_config.model_weights = "s3://bucket/model"


def nowhere(config: Any) -> None:
    config.model_config.model = "nobody/has-this-model"


def damaged(config: Any) -> None:
    (Path(config.model_config.model) / "model.safetensors").write_bytes(b"no")


@pytest.mark.parametrize("trouble", [no_weights, dummy_weights, in_a_bucket, nowhere, damaged])
def test_what_cannot_be_read_has_none(folder: Path, trouble: Callable[[Any], None]) -> None:
    config = config_of(folder)
    trouble(config)
    with pytest.raises(FingerprintError):
        of(config)


def test_files_that_changed_since_loading_began_have_none(folder: Path) -> None:
    with pytest.raises(FingerprintError, match="has changed since"):
        fingerprint_of(config_of(folder), loaded_since_s=time.time() - 3600, cache_folder=None)


def test_what_the_hub_has_just_brought_has_one(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "1"
    blobs = tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    config = config_of(snapshot)
    found = fingerprint_of(config, loaded_since_s=time.time() - 3600, cache_folder=None)
    assert found == of(config_of(folder))


def test_an_adapter_is_known_by_its_files(folder: Path, tmp_path: Path) -> None:
    later_s = time.time() + 3600
    before = adapter_fingerprint(folder, loaded_since_s=later_s)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    assert adapter_fingerprint(elsewhere, loaded_since_s=later_s) == before
    (elsewhere / "model.safetensors").write_bytes(_with_a_tensor())
    assert adapter_fingerprint(elsewhere, loaded_since_s=later_s) != before
    with pytest.raises(FingerprintError, match="has changed since"):
        adapter_fingerprint(elsewhere, loaded_since_s=0.0)
    with pytest.raises(FingerprintError, match="cannot be read"):
        adapter_fingerprint(tmp_path / "none", loaded_since_s=later_s)


def test_real_configurations_have_one_that_lasts(demo_model: Path, tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    def made(model: Path, **options: Any) -> str:
        known = {"enforce_eager": True, "dtype": "float32", "max_model_len": 512, "block_size": 32}
        config = EngineArgs(model=str(model), **{**known, **options}).create_engine_config()
        return of(config)

    elsewhere = tmp_path / "model"
    shutil.copytree(demo_model, elsewhere)
    assert made(demo_model) == made(elsewhere)
    others = [
        made(demo_model, **changed) for changed in ({"dtype": "bfloat16"}, {"block_size": 64})
    ]
    assert len({made(demo_model), *others}) == 3
