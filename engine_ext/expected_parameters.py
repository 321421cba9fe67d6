"""Whether methods of vLLM take what they took when their wrappers were written."""

import inspect
from collections.abc import Mapping


def check_parameters(expected: Mapping[tuple[type, str], tuple[str, ...]]) -> None:
    """Compare the names of the parameters of each method, by its class and name, with those
    expected.

    Raises:
        RuntimeError: a method's are others.
    """
    for (owner, name), parameters in expected.items():
        found = tuple(inspect.signature(getattr(owner, name)).parameters)
        if found != parameters:
            raise RuntimeError(f"{owner.__name__}.{name}{found} is not as expected {parameters}")
