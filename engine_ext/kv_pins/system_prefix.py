"""Finds how many leading tokens of a chat's prompt come from its `system` role.

The chat template decides where those tokens end, and whether tools are among them. So the leading
`system` and `developer` messages are rendered with two different questions after them, as the chat
itself is: what both have in common is the prefix. It is kept, and compared with each chat's own
tokens, so what is found is true of the chat whatever the template does.

The hooks of `Feature.SYSTEM_PREFIX`, in front ends; the number goes with the prompt.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from reprise.engine_ext.compat.engine_state import mark_of, set_mark
from reprise.engine_ext.core.config import engine_config
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.identity import uses_our_proposer
from reprise.engine_ext.core.request_hints import set_num_system_tokens

_FINDER = "system_prefix_finder"
_MAX_PREFIXES = 256
_ROLES = ("system", "developer")
_QUESTIONS = ("Alpha?", "9 zeta.")

errors = ErrorCounter()
"""What failed while rendering prefixes in this process."""


class SystemPrefixes:
    """Finds the prefix of one renderer's chats; keeps those used last."""

    def __init__(self) -> None:
        self._prefixes: OrderedDict[str, list[int]] = OrderedDict()

    def known(self, key: str) -> list[int] | None:
        """Return the prefix [num_tokens] of the chats with this key, or None."""
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
        return self._prefixes.get(key)

    def learn(self, key: str, renderings: Sequence[Any]) -> list[int]:
        """Keep what all of these prompts begin with, and return it."""
        prompts: list[list[int]] = [prompt["prompt_token_ids"] for prompt in renderings]
        prefix = prompts[0][: min(_num_common(prompts[0], other) for other in prompts[1:])]
        self._prefixes[key] = prefix
        if len(self._prefixes) > _MAX_PREFIXES:
            self._prefixes.popitem(last=False)
        return prefix


def forget_system_prefixes(renderer: Any) -> None:
    """Forget what was found for a renderer's chats, whose texts it is found by."""
    set_mark(renderer, _FINDER, None)


def render_chat(
    original: Callable[..., Any],
    renderer: Any,
    conversations: Sequence[list[Any]],
    chat_params: Any,
    tok_params: Any = None,
    **kwargs: Any,
) -> Any:
    """Run vLLM's, and note in each prompt how many tokens come from the `system` role."""
    rendered = original(renderer, conversations, chat_params, tok_params, **kwargs)
    if (finder := _finder_of(renderer)) is not None:
        for messages, prompt in zip(conversations, rendered[1], strict=True):
            with errors.recording("system_prefix"):
                if (key := _key(messages, chat_params)) is None:
                    continue
                prefix = finder.known(key)
                if prefix is None:
                    _, others = original(renderer, _asking(messages), chat_params, tok_params)
                    prefix = finder.learn(key, others)
                _note(prompt, prefix)
    return rendered


async def render_chat_async(
    original: Callable[..., Any],
    renderer: Any,
    conversations: Sequence[list[Any]],
    chat_params: Any,
    tok_params: Any = None,
    **kwargs: Any,
) -> Any:
    """As `render_chat`."""
    rendered = await original(renderer, conversations, chat_params, tok_params, **kwargs)
    if (finder := _finder_of(renderer)) is not None:
        for messages, prompt in zip(conversations, rendered[1], strict=True):
            with errors.recording("system_prefix"):
                if (key := _key(messages, chat_params)) is None:
                    continue
                prefix = finder.known(key)
                if prefix is None:
                    _, others = await original(renderer, _asking(messages), chat_params, tok_params)
                    prefix = finder.learn(key, others)
                _note(prompt, prefix)
    return rendered


def _finder_of(renderer: Any) -> SystemPrefixes | None:
    """Return what finds prefixes for a renderer; None: the settings want none."""
    found: SystemPrefixes | bool | None = mark_of(renderer, _FINDER)
    if found is None:
        found = SystemPrefixes() if _is_wanted(renderer) else False
        set_mark(renderer, _FINDER, found)
    return found or None  # type: ignore[return-value]


def _is_wanted(renderer: Any) -> bool:
    config = renderer.config
    if config.speculative_config is None or not uses_our_proposer(config):
        return False
    try:
        pins = engine_config(config).kv_pins
    except ValueError:
        return False  # the front end, which reads the settings next, refuses to start
    return pins.enabled and pins.system_role


def _leading(messages: Sequence[Any]) -> list[Any]:
    """Return the messages of the `system` role before any other."""
    leading = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else getattr(message, "role", None)
        if role not in _ROLES:
            break
        leading.append(message)
    return leading


def _key(messages: Sequence[Any], chat_params: Any) -> str | None:
    """Return what a chat's prefix depends on, as a text; None: it has none of the `system` role."""
    leading = _leading(messages)
    if not leading:
        return None
    depends_on = [leading, chat_params.chat_template, chat_params.chat_template_kwargs]
    return json.dumps(depends_on, sort_keys=True, default=str)


def _asking(messages: Sequence[Any]) -> list[list[Any]]:
    """Return chats with the same `system` role, and nothing else in common."""
    leading = _leading(messages)
    return [[*leading, {"role": "user", "content": question}] for question in _QUESTIONS]


def _note(prompt: Any, prefix: list[int]) -> None:
    """Note how much of the prefix a prompt begins with."""
    token_ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    if token_ids:
        set_num_system_tokens(prompt, _num_common(prefix, token_ids))


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens that two prompts begin with alike."""
    length = min(len(one), len(other))
    if list(one[:length]) == list(other[:length]):
        return length
    return next(place for place in range(length) if one[place] != other[place])
