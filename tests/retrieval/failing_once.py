"""Errors that go away."""

import itertools


def failing_once(function, num_failures=1):
    """The function, which raises at its first calls."""
    calls = itertools.count()

    def call(*arguments, **named):
        if next(calls) < num_failures:
            raise AssertionError("injected")
        return function(*arguments, **named)

    return call
