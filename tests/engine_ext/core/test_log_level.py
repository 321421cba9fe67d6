"""What we log is seen in vLLM's server, whatever that loads."""

import logging
import subprocess
import sys

import pytest

from reprise.engine_ext.core import log_level

SERVER = """
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.entrypoints.launchers.api_server import entry
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
entry.build_app(args, ("generate",), None)
from vllm.logger import init_logger
init_logger("reprise.engine_ext.request.tenants").warning("seen")
"""


@pytest.mark.slow
def test_a_warning_is_seen_after_vllms_app_is_built() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVER], capture_output=True, text=True, timeout=200, check=True
    )
    assert sum("seen" in line for line in done.stderr.splitlines()) == 1


def test_what_we_say_goes_where_vllm_says_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is no warning, and once, though the root logger has no handler."""
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    log_level.install()
    ours, vllms, root = (logging.getLogger(name) for name in ("reprise", "vllm", None))
    monkeypatch.setattr(ours, "level", logging.INFO)
    monkeypatch.setattr(vllms, "handlers", [Handler(), Handler(logging.ERROR)])
    monkeypatch.setattr(root, "handlers", [])
    child = logging.getLogger("reprise.engine_ext.anything.new")
    child.info("of a runner")
    assert seen == ["of a runner"]
    monkeypatch.setattr(root, "handlers", [Handler()])
    child.info("of the root")
    assert seen == ["of a runner", "of the root"]


def test_a_level_that_somebody_chose_stays() -> None:
    ours = logging.getLogger("reprise")
    before = ours.level
    try:
        for chosen in (logging.DEBUG, logging.ERROR):
            ours.setLevel(chosen)
            log_level.install()
            assert ours.level == chosen
        ours.setLevel(logging.NOTSET)
        log_level.install()
        assert ours.level != logging.NOTSET
    finally:
        ours.setLevel(before)
