"""Lines of progress go to the standard error of the beginning, and into a file."""

import re
from pathlib import Path

import pytest

from reprise.eval.report.command_line import InputError
from reprise.eval.report.progress_log import ProgressLog


def test_lines_carry_the_time_and_are_appended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "progress.log"
    path.write_text("before\n")
    log = ProgressLog(path)
    log("half of it")
    log("all of it")
    printed = capfd.readouterr().err
    assert path.read_text() == "before\n" + printed
    assert re.fullmatch(r"(\d\d:\d\d:\d\d (half|all) of it\n){2}", printed)


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no-such-folder.*No such file"):
        ProgressLog(tmp_path / "no-such-folder" / "progress.log")
