"""Our warnings are seen in vLLM's server, whatever that loads."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest

from reprise.engine_ext.core import logs

SERVER = """
from vllm.config.logging import LoggingConfig
from vllm.logger import configure_logging
from vllm.plugins import load_general_plugins
load_general_plugins()
configure_logging(LoggingConfig())
from vllm.entrypoints.launchers.api_server import entry
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
entry.build_app(args, ("generate",), None)
from vllm.logger import init_logger
init_logger("reprise.engine_ext.request.tenants").warning("seen")
"""
CHOSEN = ("VLLM_PLUGINS", "VLLM_LOGGING", "VLLM_CONFIGURE_LOGGING", "REPRISE_")


@pytest.mark.slow
def test_a_warning_is_seen_after_vllms_app_is_built() -> None:
    # Which plugins are loaded and where lines go is the child's own, whatever ran here before.
    ours = {name: value for name, value in os.environ.items() if not name.startswith(CHOSEN)}
    done = subprocess.run(
        [sys.executable, "-c", SERVER], capture_output=True, text=True, timeout=800, env=ours
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.endswith("seen")]
    assert len(lines) == 1, (done.stdout, done.stderr)
    (line,) = lines
    assert re.fullmatch(r".*pid=\d+\) WARNING \d\d-\d\d \d\d:\d\d:\d\d \[<string>:\d+\] seen", line)


def test_lines_are_vllms_or_json(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours, theirs = logging.getLogger("reprise"), logging.getLogger("vllm")
    monkeypatch.setattr(ours, "propagate", True)
    seen: list[str] = []
    stand_in = logging.Handler(logging.WARNING)
    stand_in.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(theirs, "handlers", [])
    monkeypatch.setattr(ours, "handlers", [])
    logs.install()
    logs.install()
    with caplog.at_level(logging.WARNING):
        ours.warning("before vLLM's are configured")
    assert len([each for each in caplog.messages if "before vLLM's" in each]) == 1
    theirs.handlers[:] = [stand_in]
    ours.warning("one")
    ours.info("below their level")
    assert seen == ["one"]
    assert not ours.propagate
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setenv("REPRISE_LOG_FORMAT", "json")
    logs.install()
    logging.getLogger("reprise.retrieval").warning("zwei: %s", "二")
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["logger"]) == ("WARNING", "reprise.retrieval")
    assert (line["message"], line["pid"]) == ("zwei: 二", os.getpid())
    assert seen == ["one"]


def test_a_level_that_somebody_chose_stays() -> None:
    ours = logging.getLogger("reprise")
    before = ours.level
    try:
        for chosen in (logging.DEBUG, logging.ERROR):
            ours.setLevel(chosen)
            logs.install()
            assert ours.level == chosen
        ours.setLevel(logging.NOTSET)
        logs.install()
        assert ours.level != logging.NOTSET
    finally:
        ours.setLevel(before)
