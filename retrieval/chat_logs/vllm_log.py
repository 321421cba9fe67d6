"""vLLM's own log of requests: from the lines that it writes to prompts with their answers.

    Request chatcmpl-1 details: prompt: '<|user|>hi', prompt_token_ids: [5, 6], ...
    Generated response chatcmpl-1: output: 'there', finish_reason: stop

Older versions have the prompt in `Received request`. Prompts are there with `--enable-log-requests`
at `VLLM_LOGGING_LEVEL=DEBUG`, outputs with `--enable-log-outputs`; `--max-log-len` cuts both off.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

_QUOTED = r"""(?:'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")"""
# Before it stands what the logger adds, without quotation marks: a text may speak of these lines.
_OF_PROMPT = r"^[^'\"]*?(?:Request (?P<id>\S+) details|Received request (?P<old_id>\S+)): prompt: "
_OF_OUTPUT = r"^[^'\"]*?Generated response (?P<id>\S+)(?P<stream> \(streaming \w+\))?: output: "
_PROMPT, _OUTPUT = (re.compile(rf"{of}(?P<text>{_QUOTED}),") for of in (_OF_PROMPT, _OF_OUTPUT))
_CUT_OFF = tuple(re.compile(rf"{of}['\"]") for of in (_OF_PROMPT, _OF_OUTPUT))
# In place of what vLLM did not keep: no text of the model's.
_PLACEHOLDERS = re.compile(
    r"<streaming_complete: \d+ tokens>|\[(?:tool_calls|reasoning): .*\]", re.DOTALL
)


class VllmLog:
    """Pairs prompts with outputs, line by line; lines about anything else are passed over.

    A row is like a request and a response of OpenAI's interface; the prompt is rendered.
    """

    def __init__(self) -> None:
        self._prompts: dict[str, tuple[int, str]] = {}
        self._answered: set[str] = set()
        self._deltas: dict[str, list[str]] = {}
        self._first_line: tuple[int, str] | None = None
        self._first_output: int | None = None

    def rows_of(self, line: str, number: int) -> Iterator[dict[str, Any]]:
        """Yield the row that a line completes, if it does.

        Raises:
            ValueError: A line of vLLM's is cut off.
        """
        if self._first_line is None:
            self._first_line = (number, line)
        if (found := _PROMPT.search(line)) is not None:
            self._prompts[found["id"] or found["old_id"]] = (number, _text(found["text"]))
        elif (found := _OUTPUT.search(line)) is not None:
            if self._first_output is None:
                self._first_output = number
            yield from self._answer(found["id"], found["stream"] or "", _text(found["text"]))
        elif any(cut_off.search(line) for cut_off in _CUT_OFF):
            raise ValueError("a line of vLLM's log that is cut off")

    def problem(self) -> tuple[int, str] | None:
        """Return (line number, what is wrong) where nothing can be read of all lines."""
        if self._first_line is None or self._answered:
            return None
        if self._first_output is not None:
            return self._first_output, (
                "vLLM's log has outputs without their prompts, which it writes with "
                "--enable-log-requests and VLLM_LOGGING_LEVEL=DEBUG"
            )
        if self._prompts:
            number = min(number for number, _ in self._prompts.values())
            return number, "vLLM's log has prompts without outputs: see --enable-log-outputs"
        number, line = self._first_line
        shown = line if len(line) <= 40 else f"{line[:40]}..."
        return number, f"neither JSON nor vLLM's log of requests: {shown!r}"

    def unanswered(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line number, row without an answer) for each prompt that got none."""
        for request_id, (number, prompt) in self._prompts.items():
            if request_id not in self._answered:
                yield number, _row(prompt, [])

    def _answer(self, request_id: str, stream: str, text: str) -> Iterator[dict[str, Any]]:
        if "delta" in stream:
            self._deltas.setdefault(request_id, []).append(text)
            return
        deltas = "".join(self._deltas.pop(request_id, ()))
        if stream and _PLACEHOLDERS.fullmatch(text):
            text = deltas
        if request_id not in self._prompts:  # the log begins later than the request
            yield _row("", [])
            return
        self._answered.add(request_id)
        is_text = not _PLACEHOLDERS.fullmatch(text)
        yield _row(self._prompts[request_id][1], [{"text": text}] if is_text else [])


def logged_line(row: Mapping[str, Any]) -> str | None:
    """Return the line in a row of a structured log; None if it is no such row."""
    for key in ("message", "msg", "log"):
        if isinstance(row.get(key), str) and not row.keys() & {"messages", "prompt", "response"}:
            return str(row[key])
    return None


def _row(prompt: str, choices: list[dict[str, str]]) -> dict[str, Any]:
    return {"request": {"prompt": prompt, "rendered": True}, "response": {"choices": choices}}


def _text(quoted: str) -> str:
    return str(ast.literal_eval(quoted))
