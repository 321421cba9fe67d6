"""The configuration: precedence, bounds, and one clear line for what is wrong."""

import json
from pathlib import Path

import pytest

from reprise.engine_ext.core.config import load_config


def test_additional_config_beats_file_beats_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRISE_DRAFTS__NUM_SPECULATIVE_TOKENS", "3")
    monkeypatch.setenv("REPRISE_DRAFTS__MAX_NEAR_ANSWERS", "4")
    monkeypatch.setenv("REPRISE_RETRIEVAL__NEAR_ANSWERS", "5")
    file = tmp_path / "reprise.toml"
    file.write_text("[drafts]\nmax_near_answers = 6\n[retrieval]\nnear_answers = 7\n")
    monkeypatch.setenv("REPRISE_CONFIG", str(file))
    config = load_config({"retrieval": {"near_answers": 8}})
    assert config.drafts.num_speculative_tokens == 3
    assert config.drafts.max_near_answers == 6
    assert config.retrieval.near_answers == 8


def test_json_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "reprise.json"
    file.write_text(json.dumps({"namespace": "acme"}))
    monkeypatch.setenv("REPRISE_CONFIG", str(file))
    assert load_config().namespace == "acme"


@pytest.mark.parametrize(
    ("additional", "message"),
    [
        ({"drafs": {}}, "unknown setting 'drafs'"),
        ({"drafts": {"num_spec": 1}}, "unknown setting 'drafts.num_spec'"),
        ({"drafts": {"num_speculative_tokens": 1000}}, "drafts.num_speculative_tokens: .*got 1000"),
        ({"retrieval": {"near_answers": "many"}}, "retrieval.near_answers: .*got 'many'"),
    ],
)
def test_a_bad_setting_is_named(additional: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(additional)


def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRISE_DRAFT__VERIFY_COST", "0.1")
    with pytest.raises(ValueError, match="unknown environment variable REPRISE_DRAFT__VERIFY_COST"):
        load_config()


@pytest.mark.parametrize("content", ["not = [valid", None])
def test_an_unreadable_file_is_named(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "reprise.toml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("REPRISE_CONFIG", str(file))
    with pytest.raises(ValueError, match="expected a readable TOML or JSON file"):
        load_config()


@pytest.mark.parametrize("namespace", ["", "a/b", "n" * 129])
def test_a_namespace_that_declares_no_tenant_is_refused(
    monkeypatch: pytest.MonkeyPatch, namespace: str
) -> None:
    """Least of all may a variable that was left empty put all tenants into one."""
    monkeypatch.setenv("REPRISE_NAMESPACE", namespace)
    with pytest.raises(ValueError, match=r"namespace: .*got"):
        load_config()
