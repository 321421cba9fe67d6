"""Errors that must not reach the engine."""

import pytest

from reprise.engine_ext.core import error_counter
from reprise.engine_ext.core.error_counter import RECENT_S, ErrorCounter


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
