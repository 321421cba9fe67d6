"""The configuration: precedence, bounds, and one clear line for what is wrong."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprise.engine_ext.core.config import draft_config, engine_config, load_config


def test_additional_config_beats_file_beats_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRISE_DRAFTS__NUM_THREADS", "3")
    monkeypatch.setenv("REPRISE_DRAFTS__MAX_NEAR_ANSWERS", "4")
    monkeypatch.setenv("REPRISE_RETRIEVAL__NEAR_ANSWERS", "5")
    file = tmp_path / "reprise.toml"
    file.write_text("[drafts]\nmax_near_answers = 6\n[retrieval]\nnear_answers = 7\n")
    monkeypatch.setenv("REPRISE_CONFIG", str(file))
    config = load_config({"retrieval": {"near_answers": 8}})
    assert config.drafts.num_threads == 3
    assert config.drafts.max_near_answers == 6
    assert config.retrieval.near_answers == 8


def test_prefixes_come_from_the_environment_one_or_several(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in (("You are.", ("You are.",)), ('["a", "@b"]', ("a", "@b"))):
        monkeypatch.setenv("REPRISE_KV_PINS__PREFIXES", given)
        assert load_config().kv_pins.prefixes == expected
    monkeypatch.setenv("REPRISE_KV_PINS__PREFIXES", "[a")
    with pytest.raises(ValueError, match=r"kv_pins\.prefixes"):
        load_config()


def engine(num_speculative_tokens: int) -> Any:
    speculative = SimpleNamespace(num_speculative_tokens=num_speculative_tokens)
    drafts = {"reprise": {"drafts": {"verify_cost": 0.02}}}
    return SimpleNamespace(additional_config=drafts, speculative_config=speculative)


def test_the_engine_says_how_long_drafts_are() -> None:
    drafts = draft_config(engine_config(engine(24)), engine(24))
    assert (drafts.num_speculative_tokens, drafts.verify_cost) == (24, 0.02)
    with pytest.raises(ValueError, match=r"^--speculative-config: num_speculative_tokens: .*1000"):
        engine_config(engine(1000))


def test_json_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "reprise.json"
    file.write_text(json.dumps({"namespace": "acme"}))
    monkeypatch.setenv("REPRISE_CONFIG", str(file))
    assert load_config().namespace == "acme"


@pytest.mark.parametrize("ending", ["yaml", "yml"])
def test_yaml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    file = tmp_path / f"reprise.{ending}"
    file.write_text("namespace: acme\nretrieval:\n  url: memory://\n  near_answers: 7\n")
    monkeypatch.setenv("REPRISE_CONFIG", str(file))
    assert load_config().namespace == "acme"
    assert load_config().retrieval.near_answers == 7
    file.write_text("a: [")
    with pytest.raises(ValueError, match="expected a readable TOML, YAML or JSON file") as error:
        load_config()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("additional", "message"),
    [
        ({"drafs": {}}, "unknown setting 'drafs'"),
        ({"drafts": {"num_spec": 1}}, "unknown setting 'drafts.num_spec'"),
        ({"drafts": {"max_near_answers": 33}}, "drafts.max_near_answers: .*got 33"),
        ({"retrieval": {"near_answers": 33}}, "retrieval.near_answers: .*got 33"),
        ({"drafts": {"num_speculative_tokens": 8}}, "unknown setting"),
        ({"retrieval": {"gpu_index": True}}, "unknown setting 'retrieval.gpu_index'$"),
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


@pytest.mark.parametrize("value", ["", "foo", "{"])
def test_a_section_that_is_no_object_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("REPRISE_SERVING", value)
    with pytest.raises(ValueError, match="REPRISE_SERVING must be a JSON object of settings"):
        load_config()
    monkeypatch.setenv("REPRISE_SERVING", '{"exact_hits": "always"}')
    assert load_config().serving.exact_hits == "always"


@pytest.mark.parametrize("content", ["not = [valid", None])
def test_an_unreadable_file_is_named(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "reprise.toml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("REPRISE_CONFIG", str(file))
    with pytest.raises(ValueError, match="expected a readable TOML, YAML or JSON file"):
        load_config()


def test_off_means_off_in_yaml_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "reprise.yaml"
    file.write_text("serving:\n  exact_hits: off\n  exact_hits_from_others: off\n")
    monkeypatch.setenv("REPRISE_CONFIG", str(file))
    serving = load_config().serving
    assert (serving.exact_hits, serving.exact_hits_from_others) == ("off", "off")
    file.write_text("serving:\n  exact_hits: on\n")
    with pytest.raises(ValueError, match=r"serving\.exact_hits: .*got True"):
        load_config()


SECRET = "S3CR3T-w0rd"


@pytest.mark.parametrize(
    "content",
    [
        f"serving:\n  admin_token: @{SECRET}\n",
        f"serving:\n  admin_token: *{SECRET}\n",
        f"serving:\n  admin_token: !{SECRET} x\n",
        f"retrieval:\n  url: redis://:{SECRET}@h:6379/0 : x\n",
    ],
)
def test_an_unreadable_file_shows_nothing_of_what_it_says(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "reprise.yaml"
    file.write_text(content)
    monkeypatch.setenv("REPRISE_CONFIG", str(file))
    with pytest.raises(ValueError, match="at line 2, column") as refused:
        load_config()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("token", [f"{SECRET}\n", f" {SECRET}", f"{SECRET}\x00", f"{SECRET}ä", ""])
def test_a_token_that_no_header_carries_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match=r"serving\.admin_token") as refused:
        load_config({"serving": {"admin_token": token}})
    assert SECRET not in str(refused.value)


def test_a_token_that_is_no_text_is_not_shown() -> None:
    with pytest.raises(ValueError, match=r"serving\.admin_token: .*got int") as refused:
        load_config({"serving": {"admin_token": 4711}})
    assert "4711" not in str(refused.value)


@pytest.mark.parametrize("namespace", ["", "a/b", "n" * 129])
def test_a_namespace_that_declares_no_tenant_is_refused(
    monkeypatch: pytest.MonkeyPatch, namespace: str
) -> None:
    """Least of all may a variable that was left empty put all tenants into one."""
    monkeypatch.setenv("REPRISE_NAMESPACE", namespace)
    with pytest.raises(ValueError, match=r"namespace: .*got"):
        load_config()
