"""Progress is seen where standard error is a file: a line at the beginning and then regularly."""

import re
import time

import pytest

from reprise.eval.report.progress import progress_stages


def test_lines_in_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    said = ""
    deadline_s = time.monotonic() + 60.0
    with (
        progress_stages(quiet=False, every_s=0.02) as stage,
        stage("support: suffix", 7) as tick,
    ):
        tick()
        tick()
        while " 2 of 7 after" not in said and time.monotonic() < deadline_s:
            time.sleep(0.02)
            said += capfd.readouterr().err
    said += capfd.readouterr().err
    first, *others = said.splitlines()
    assert first.endswith(" support: suffix: begins")
    assert re.search(r" support: suffix: 2 of 7 after \d+ s$", others[-1])
    time.sleep(0.1)
    assert "support: suffix" not in capfd.readouterr().err  # the stage has ended


def test_an_error_ends_the_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(KeyError),
        progress_stages(quiet=False, every_s=0.02) as stage,
        stage("engines", 1),
    ):
        raise KeyError
    capfd.readouterr()
    time.sleep(0.1)
    assert "engines" not in capfd.readouterr().err


def test_nothing_where_it_is_to_be_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_stages(quiet=True, every_s=0.01) as stage, stage("engines", 1) as tick:
        tick()
        time.sleep(0.05)
    assert "engines" not in capfd.readouterr().err
