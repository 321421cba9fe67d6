"""Whether methods of vLLM take what they took when their wrappers were written."""

import inspect
from collections.abc import Mapping

Methods = Mapping[tuple[type, str], tuple[str, ...]]
"""By class and name: the names of the parameters."""


def unexpected_parameters(expected: Methods, *, leading: bool = False) -> str | None:
    """The first method whose parameters, or `leading` ones, are others, in one line; None if all
    are as expected."""
    for (owner, name), parameters in expected.items():
        method = getattr(owner, name, None)
        found = tuple(inspect.signature(method).parameters) if method is not None else ()
        if (found[: len(parameters)] if leading else found) != parameters:
            return f"{owner.__name__}.{name}{found} is not as expected {parameters}"
    return None


def check_parameters(expected: Methods) -> None:
    """Compare all parameters of each method with those expected.

    Raises:
        RuntimeError: a method's are others.
    """
    if (problem := unexpected_parameters(expected)) is not None:
        raise RuntimeError(problem)
