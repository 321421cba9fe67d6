"""Formats log lines as vLLM's processes do, or as JSON."""

from __future__ import annotations

import json
import logging
import time

_FORMAT = (
    "(%(processName)s pid=%(process)d) %(levelname)s %(asctime)s "
    "[%(filename)s:%(lineno)d] %(message)s"
)
_DATE_FORMAT = "%m-%d %H:%M:%S"


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: time (UTC), level, process, pid, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        time_utc = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{time_utc}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "process": getattr(record, "vllm_process_name", record.processName),
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def formatter(*, as_json: bool) -> logging.Formatter:
    """Return the formatter for a process of ours that is not vLLM's."""
    return JsonLines() if as_json else logging.Formatter(_FORMAT, _DATE_FORMAT)
