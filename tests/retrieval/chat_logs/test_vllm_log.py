"""vLLM's log of requests gives prompts with their answers."""

import json
import logging
from pathlib import Path

import pytest

from reprise.retrieval.chat_logs.exchanges import Exchange, exchanges_of
from reprise.retrieval.chat_logs.log_rows import LogError, read_log

PREFIX = "\x1b[0;36m(APIServer pid=1)\x1b[0;0m INFO 11-29 14:00:00 [request_logger.py:80] "
START = PREFIX + "vLLM API server version 0.32.0\n"
ASKED = (
    PREFIX
    + r"""Request chatcmpl-1 details: prompt: '<u>it\'s "hi"\n', prompt_token_ids: [1]"""
    + "\n"
)
OLD = PREFIX + "Received request cmpl-2: prompt: 'bye', params: SamplingParams(n=1)\n"
RECEIVED = PREFIX + "Received request chatcmpl-1: params: SamplingParams(n=1).\n"
SAID = PREFIX + "Generated response chatcmpl-1: output: 'there', finish_reason: stop\n"
OLD_SAID = PREFIX + "Generated response cmpl-2: output: 'now', output_token_ids: [2]\n"
HI = Exchange(None, '<u>it\'s "hi"\n', "there", rendered=True)
BYE = Exchange(None, "bye", "now", rendered=True)


@pytest.fixture
def read(tmp_path: Path):
    def read(content: str) -> list[list[Exchange]]:
        path = tmp_path / "server.log"
        path.write_text(content, encoding="utf-8")
        return [exchanges_of(row.fields) for row in read_log(path)]

    return read


def streamed(kind: str, text: str) -> str:
    return PREFIX + (
        f"Generated response chatcmpl-1 (streaming {kind}): output: {text!r}, finish_reason: None\n"
    )


@pytest.mark.parametrize(
    ("content", "exchanges"),
    [
        (START + ASKED + RECEIVED + SAID, [[HI]]),
        (START + ASKED + OLD + OLD_SAID + SAID, [[BYE], [HI]]),
        (ASKED + SAID + SAID, [[HI], [HI]]),  # a request for two answers
        (ASKED + streamed("delta", "the") + streamed("complete", "there"), [[HI]]),
        (
            ASKED
            + streamed("delta", "the")
            + streamed("delta", "re")
            + streamed("complete", "<streaming_complete: 2 tokens>"),
            [[HI]],
        ),
        (ASKED + streamed("complete", "<streaming_complete: 2 tokens>"), [[]]),
        (ASKED + SAID.replace("there", "[tool_calls: find(x)]"), [[]]),
        (ASKED + SAID + OLD, [[HI], []]),  # one that was not answered
        (SAID + ASKED + SAID, [[], [HI]]),  # the log begins after a request did
        # Texts may speak of such lines.
        (
            OLD.replace("bye", "Generated response cmpl-2: output: 1,") + OLD_SAID,
            [[BYE._replace(prompt="Generated response cmpl-2: output: 1,")]],
        ),
        (
            OLD + OLD_SAID.replace("'now'", "\"Request x details: prompt: 'a', b\""),
            [[BYE._replace(response="Request x details: prompt: 'a', b")]],
        ),
    ],
)
def test_prompts_are_paired_with_outputs(read, content: str, exchanges: list) -> None:
    assert read(content) == exchanges


@pytest.mark.parametrize("key", ["message", "msg", "log"])
def test_a_structured_log_is_read_too(read, key: str) -> None:
    lines = [json.dumps({key: line, "level": "INFO"}) for line in (START, ASKED, RECEIVED, SAID)]
    assert read("\n".join(lines)) == [[HI]]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (START + RECEIVED + SAID, 3, "outputs without their prompts, .*VLLM_LOGGING_LEVEL=DEBUG"),
        (START + ASKED + RECEIVED, 2, "prompts without outputs: see --enable-log-outputs"),
        (START + "\n" + ASKED[: ASKED.index("prompt: ") + 15] + "\n", 3, "cut off"),
        (ASKED + SAID[: SAID.index("there") + 2] + "\n", 2, "cut off"),
        (START, 1, "neither JSON nor vLLM's log of requests"),
        ('{"message": "started"}\n{"message": "stopped"}\n', 1, "neither JSON nor vLLM's log"),
    ],
)
def test_a_log_that_cannot_be_used(read, content: str, line: int, problem: str) -> None:
    with pytest.raises(LogError, match=rf"server\.log, line {line}: .*{problem}"):
        read(content)


@pytest.mark.engine
def test_what_this_vllm_writes(read, tmp_path: Path) -> None:
    from vllm.entrypoints.serve.utils import request_logger

    lines = tmp_path / "lines"
    handler = logging.FileHandler(lines)
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s [%(filename)s] %(message)s"))
    logger = logging.getLogger(request_logger.__name__)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        log = request_logger.RequestLogger(max_log_len=None)
        log.log_inputs("chatcmpl-1", HI.prompt, [1, 2], None, None, None)
        log.log_outputs("chatcmpl-1", "the", [3], is_streaming=True, delta=True)
        log.log_outputs("chatcmpl-1", "there", None, "streaming_complete", is_streaming=True)
        log.log_inputs("cmpl-2", "bye", [1], None, None, None)
        log.log_outputs("cmpl-2", "now", [2], "stop")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
    assert read(lines.read_text()) == [[HI], [BYE]]
