"""From a chat prompt to the query: the last user turn with its context, without the system prompt.

Works for any chat template: what the template writes around a user turn is learned by rendering a
conversation of sentinels, not known beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The last user turn lies at the end; further back there is nothing to embed.
MAX_PROMPT_TOKENS = 16_384
QueryOf = Callable[[str], str]
Render = Callable[[list[dict[str, str]]], str]

# A model for embeddings sees some 256 word pieces; questions stand at a text's start or end.
QUERY_CHARACTERS = 1000
_HEAD_CHARACTERS = 300
# A turn this long says what it is about; a shorter one ("and for two?") needs the one before.
_SELF_CONTAINED_WORDS = 10
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]{2}|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_FIRST, _REPLY, _SECOND = "firstuserturnqzx", "assistantreplyqzx", "seconduserturnqzx"
_SYSTEM = "systempromptqzx"
_USER_TURN = re.compile("firstuserturnqzx|seconduserturnqzx")
_MARKS = re.compile(r"(?s).*[>\]]")


def prompt_tail(prompt_token_ids: ArrayLike) -> NDArray[Any]:
    """Return the end of a prompt's token ids [p]; a long list is cut before it is converted."""
    if not isinstance(prompt_token_ids, list | tuple | np.ndarray):
        prompt_token_ids = np.asarray(prompt_token_ids)
    return np.array(prompt_token_ids[-MAX_PROMPT_TOKENS:])


def clip(text: str) -> str:
    """Return the text, or its head and tail if it is longer than an embedding model reads."""
    text = text.strip()
    if len(text) > QUERY_CHARACTERS:
        tail = QUERY_CHARACTERS - _HEAD_CHARACTERS
        text = text[:_HEAD_CHARACTERS] + "\n" + text[-tail:]
    # Half of a character, which nothing can encode, would fail all that is embedded with it.
    return text.encode("utf-8", "replace").decode()


def query_of_turns(turns: Sequence[str]) -> str:
    """Return the query for the user's turns, oldest first: the last, and the one before if it is
    short."""
    if not turns:
        return ""
    last = turns[-1].strip()
    # Where words are not spaced apart, two characters make about one.
    short = len(_WORD.findall(last)) < _SELF_CONTAINED_WORDS
    if short and len(turns) > 1:
        # The last turn first: embedding models cut off the end.
        return clip(f"{last}\n{turns[-2].strip()}")
    return clip(last)


def query_of_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the query for OpenAI-style messages; parts that are not text are left out."""
    turns = []
    for message in messages:
        if message.get("role") != "user":
            continue
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "\n".join(
                part["text"] for part in content if isinstance(part, Mapping) and "text" in part
            )
        turns.append(content)
    return query_of_turns(turns)


class TurnMarkers(NamedTuple):
    """What a chat template writes around a user turn; empty: nothing, or it is not known."""

    opens: str = ""
    closes: str = ""
    system_closes: str = ""
    """Behind a system prompt that lies within the user's turn."""

    def turn(self, piece: str) -> str:
        """Return the turn with which a piece of a prompt begins, without a system prompt."""
        turn = piece.partition(self.closes)[0] if self.closes else piece
        if self.system_closes and self.system_closes in turn:
            return turn.partition(self.system_closes)[2]
        return turn


_NO_MARKERS = TurnMarkers()


def query_text(prompt: str, markers: TurnMarkers = _NO_MARKERS) -> str:
    """Return the query for a rendered prompt; without markers, or if they do not occur, all of
    it."""
    if not markers.opens or markers.opens not in prompt:
        return clip(prompt)
    return query_of_turns([markers.turn(piece) for piece in prompt.split(markers.opens)[1:]])


def learn_query_of(render: Render | None) -> QueryOf:
    """Return a function from a prompt rendered by `render` to its query.

    `render` maps messages to the prompt that asks for the next reply. A template that refuses
    the sentinels, or writes nothing around turns, gives the plain fallback.
    """
    markers = _NO_MARKERS if render is None else _markers(render)

    def query_of(prompt: str) -> str:
        return query_text(prompt, markers)

    return query_of


def _markers(render: Render) -> TurnMarkers:
    """Return what the template writes before and after each user turn."""
    turns = [("user", _FIRST), ("assistant", _REPLY), ("user", _SECOND)]
    text = _rendered(render, turns)
    before_first, found_first, rest = text.partition(_FIRST)
    after_first, found_reply, rest = rest.partition(_REPLY)
    before_second, found_second, after_second = rest.partition(_SECOND)
    if not (found_first and found_reply and found_second):
        return _NO_MARKERS
    # Tokenizers that decode may add or drop spaces at the edges.
    opens = _common_suffix(before_first, before_second).strip()
    closes = _common_prefix(after_first, after_second)
    # The turn behind it may be another's than the assistant's, the user's too: what is common to
    # all, as far as it ends a mark (half of one, as "<|", people write too).
    two = _rendered(render, [("user", _FIRST), ("user", _SECOND)])
    behind = two.partition(_FIRST)[2]
    common = _MARKS.match(_common_prefix(closes, behind.partition(opens or _SECOND)[0]))
    common = common or _MARKS.match(_common_prefix(closes, behind))
    with_system = _rendered(render, [("system", _SYSTEM), *turns]).partition(_SYSTEM)[2]
    between, *follows = _USER_TURN.split(with_system, maxsplit=1)
    is_within = bool(follows) and not (opens and opens in between)
    return TurnMarkers(
        opens, (common[0] if common else closes).strip(), between.strip() if is_within else ""
    )


def _rendered(render: Render, turns: Sequence[tuple[str, str]]) -> str:
    """Return a chat of (role, content) as the template writes it; empty if it refuses."""
    try:
        return render([{"role": role, "content": content} for role, content in turns])
    except Exception:  # templates raise what they like
        return ""


def _common_prefix(left: str, right: str) -> str:
    length = 0
    while length < min(len(left), len(right)) and left[length] == right[length]:
        length += 1
    return left[:length]


def _common_suffix(left: str, right: str) -> str:
    return _common_prefix(left[::-1], right[::-1])[::-1]
