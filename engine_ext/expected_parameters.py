"""Whether methods of vLLM take what they took when their wrappers were written."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def check_parameters(expected: Mapping[Callable[..., Any], tuple[str, ...]]) -> None:
    """Compare the names of each method's parameters with those expected.

    Raises:
        RuntimeError: a method's are others.
    """
    for method, names in expected.items():
        found = tuple(inspect.signature(method).parameters)
        if found != names:
            raise RuntimeError(f"{method.__qualname__}{found} is not as expected {names}")
