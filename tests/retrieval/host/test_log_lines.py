"""Lines of our own processes: as vLLM's, or JSON."""

import json
import logging
import os
import re
import sys

from reprise.retrieval.host.log_lines import formatter


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("reprise.x", logging.WARNING, "/a/file.py", 7, "%s it", ("say",), None)
    vars(made).update(fields)
    return made


def test_a_line_has_process_level_time_and_place() -> None:
    line = formatter(as_json=False).format(record(processName="Retrieval"))
    assert re.fullmatch(
        rf"\(Retrieval pid={os.getpid()}\) WARNING \d\d-\d\d \d\d:\d\d:\d\d \[file.py:7\] say it",
        line,
    )


def test_json_is_one_line_with_the_exception() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        error = sys.exc_info()
    text = formatter(as_json=True).format(record(exc_info=error, created=0.5, msecs=500.0))
    assert "\n" not in text
    line = json.loads(text)
    assert (line["time"], line["level"]) == ("1970-01-01T00:00:00.500Z", "WARNING")
    assert (line["message"], line["logger"], line["pid"]) == ("say it", "reprise.x", os.getpid())
    assert "ValueError: two\nlines" in line["exception"]
    assert (
        json.loads(formatter(as_json=True).format(record(vllm_process_name="APIServer")))["process"]
        == "APIServer"
    )
