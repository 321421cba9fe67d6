"""How much of a chat is its `system` role, by vLLM's own renderer and a chat template."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.renderers import ChatParams, renderer_from_config

from reprise.engine_ext.compat.engine_state import mark_of
from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.request_hints import num_system_tokens
from reprise.engine_ext.kv_pins import system_prefix
from reprise.tests.engine_ext.model_runner import engine_config

TEMPLATE = (
    "{% if tools %}[tools]{% for tool in tools %}{{ tool['function']['name'] }},{% endfor %}"
    "{% endif %}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
)
SYSTEM = {"role": "system", "content": "You are a helpful assistant who knows all rules."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def renderer_of(model: Path, **pins: Any) -> Any:
    return renderer_from_config(
        engine_config(model, additional_config={"reprise": {"kv_pins": pins}})
    )


@pytest.fixture(autouse=True)
def _patched() -> Iterator[None]:
    assert registry.apply(Feature.SYSTEM_PREFIX, system_prefix, role=Role.API_SERVER)
    yield
    registry.revert(Feature.SYSTEM_PREFIX)


@pytest.fixture(scope="module")
def renderer(demo_model: Path) -> Any:
    return renderer_of(demo_model, enabled=True)


def render(renderer: Any, *messages: Any, **kwargs: Any) -> Any:
    params = ChatParams(chat_template=TEMPLATE, chat_template_kwargs=kwargs)
    _, (prompt,) = renderer.render_chat([list(messages)], params)
    _, (later,) = asyncio.run(renderer.render_chat_async([list(messages)], params))
    assert num_system_tokens(later) == num_system_tokens(prompt)
    assert later["prompt_token_ids"] == prompt["prompt_token_ids"]
    return prompt


def prefix_text(renderer: Any, prompt: Any) -> str:
    token_ids = prompt["prompt_token_ids"][: num_system_tokens(prompt)]
    return str(renderer.get_tokenizer().decode(token_ids))


def test_the_template_decides_where_the_system_role_ends(renderer: Any) -> None:
    prompt = render(renderer, SYSTEM, user("What is the weather?"))
    expected = f"[system]{SYSTEM['content']}[user]"
    assert expected.startswith(prefix_text(renderer, prompt))
    assert len(prefix_text(renderer, prompt)) >= len(expected) - len("[user]") - 1


def test_tools_are_part_of_it_and_further_turns_are_not(renderer: Any) -> None:
    few_shot = [user("One?"), {"role": "assistant", "content": "Two."}, user("Three?")]
    prompt = render(renderer, SYSTEM, *few_shot, tools=[TOOL])
    assert prefix_text(renderer, prompt).startswith(f"[tools]weather,[system]{SYSTEM['content']}")
    assert "One" not in prefix_text(renderer, prompt)
    other = render(renderer, SYSTEM, user("Four?"), tools=[TOOL])
    assert prefix_text(renderer, other) == prefix_text(renderer, prompt)


def test_chats_without_a_system_role_have_none(renderer: Any) -> None:
    assert num_system_tokens(render(renderer, user("What?"))) == 0
    assert num_system_tokens("a prompt") == 0


def test_a_prefix_is_rendered_once(renderer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    render(renderer, SYSTEM, user("First?"))
    monkeypatch.setattr(
        system_prefix.SystemPrefixes, "learn", lambda *_: pytest.fail("it is known")
    )
    assert num_system_tokens(render(renderer, SYSTEM, user("Second?"))) > 0


def test_nothing_is_kept_of_chats_that_are_forgotten(renderer: Any) -> None:
    system = {"role": "system", "content": "The patient is Ada."}
    before = num_system_tokens(render(renderer, system, user("How?")))
    finder = mark_of(renderer, system_prefix._FINDER)
    assert any("Ada" in key for key in finder._prefixes)
    system_prefix.forget_system_prefixes(renderer)
    assert not mark_of(renderer, system_prefix._FINDER)
    assert num_system_tokens(render(renderer, system, user("How?"))) == before > 0


def test_a_template_that_refuses_other_questions_keeps_no_chat_from_being_asked(
    renderer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_prefix, "_QUESTIONS", (None, None))
    monkeypatch.setattr(system_prefix, "_asking", lambda _: 1 / 0)
    before = system_prefix.errors.counts().get("system_prefix", 0)
    new = {"role": "system", "content": "Another one."}
    assert num_system_tokens(render(renderer, new, user("What?"))) == 0
    assert system_prefix.errors.counts()["system_prefix"] == before + 2


@pytest.mark.parametrize("pins", [{}, {"enabled": True, "system_role": False}])
def test_settings_switch_it_off(demo_model: Path, pins: dict[str, Any]) -> None:
    other = renderer_of(demo_model, **pins)
    assert num_system_tokens(render(other, SYSTEM, user("What?"))) == 0
