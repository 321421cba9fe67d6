"""Errors that must not reach the engine."""

import errno
from pathlib import Path

import pytest

from reprise.engine_ext.core import error_counter
from reprise.engine_ext.core.error_counter import RECENT_S, ErrorCounter, ReportedErrors


def test_an_error_speaks_against_health_for_a_while_and_counts_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(error_counter.logger, "error", lambda *_words, **_more: None)
    now_s = 0.0
    errors = ErrorCounter(clock=lambda: now_s)
    assert errors.recent() == {}
    errors.record("a", RuntimeError("x"))
    now_s = RECENT_S / 2
    errors.record("b", RuntimeError("y"))
    assert errors.recent() == {"a": 1, "b": 1}
    now_s = RECENT_S
    assert errors.recent() == {"b": 1}
    errors.record("a", RuntimeError("x"))
    assert errors.recent() == {"a": 2, "b": 1}
    now_s = 3 * RECENT_S
    assert errors.recent() == {}
    assert errors.counts() == {"a": 2, "b": 1}


def test_a_file_that_cannot_be_written_is_one_line_for_a_row_of_failures(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = ErrorCounter()

    def write(name: str, *, is_full: bool) -> None:
        with errors.writing("save", Path(name)):
            if is_full:
                raise OSError(errno.ENOSPC, "No space left on device", f"{name}.part")

    for name, is_full in (("a", True), ("a", True), ("b", True), ("a", False), ("a", True)):
        write(name, is_full=is_full)
    said = "Reprise: {} was not written and is tried again: No space left on device"
    assert [record.getMessage() for record in caplog.records] == [
        said.format(name) for name in ("a", "b", "a")
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert not any(record.exc_info for record in caplog.records)
    assert errors.counts() == errors.recent() == {"save": 4}
    with errors.writing("save", Path("a")):
        raise AssertionError("of another kind")
    assert errors.counts() == {"save": 5}
    assert caplog.records[-1].exc_info  # that is no full disk


def test_errors_of_workers_speak_against_health_since_they_were_reported() -> None:
    now_s = 0.0
    errors = ReportedErrors(clock=lambda: now_s)
    errors.take([{"errors": {"a": 1}}, None, {}, {"errors": {"a": 2, "b": 1}}])
    assert errors.recent() == {"a": 3, "b": 1}
    now_s = RECENT_S
    errors.take([{"errors": {"a": 1}}, {"errors": {"a": 2, "b": 2}}])
    assert errors.recent() == {"b": 2}
    errors.take([None, {}])  # nothing new, and nothing forgotten
    errors.take([{"errors": {"a": 1}}, {"errors": {"a": 2, "b": 2}}])
    assert errors.recent() == {"b": 2}
    now_s = 2 * RECENT_S
    assert errors.recent() == {}
