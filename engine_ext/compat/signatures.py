"""Whether what a patch is for is what it was when the patch was written."""

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from reprise.engine_ext.compat.patches import Patch

Names = tuple[str, ...]
MORE = "..."
"""At the end of expected names: others may follow."""


def find(patch: Patch) -> tuple[Any, Any]:
    """Import what a patch is for.

    Returns:
        The module or class that has the attribute, and its value; None for what is not there.
    """
    if patch.only_if_loaded:
        owner: Any = sys.modules.get(patch.module)
    else:
        try:
            owner = importlib.import_module(patch.module)
        except ModuleNotFoundError:
            owner = None
    *classes, attribute = patch.path.split(".")
    for name in classes:
        owner = getattr(owner, name, None)
    return owner, getattr(owner, attribute, None)


def difference(patch: Patch) -> str | None:
    """Compare what a patch is for with what it expects.

    Returns:
        The difference in one line; None if there is none.
    """
    _, found = find(patch)
    if found is None:
        return f"{patch.path} is not there"
    return described_difference(
        patch, parameters=lambda: _parameters(found), fields=lambda: _fields(found)
    )


def described_difference(
    patch: Patch, *, parameters: Callable[[], Names], fields: Callable[[], Names]
) -> str | None:
    """Compare what a patch expects with what there is, which is asked for only if it matters."""
    if patch.parameters is not None and not _begins(came := parameters(), patch.parameters):
        return f"{patch.path} has parameters {came}, expected {patch.parameters}"
    if patch.fields is not None and not _has(came := fields(), patch.fields):
        return f"{patch.path} has fields {came}, expected {patch.fields}"
    return None


def _begins(came: tuple[str, ...], expected: tuple[str, ...]) -> bool:
    if expected[-1:] == (MORE,):
        return came[: len(expected) - 1] == expected[:-1]
    return came == expected


def _has(came: tuple[str, ...], expected: tuple[str, ...]) -> bool:
    if expected[-1:] == (MORE,):
        return set(expected[:-1]) <= set(came)
    return set(came) == set(expected)


def _parameters(found: Any) -> tuple[str, ...]:
    function = getattr(found, "__func__", found)
    return tuple(inspect.signature(function).parameters)


def _fields(found: Any) -> tuple[str, ...]:
    """Name the fields of a dataclass, of a msgspec struct, or of a list of classes."""
    if dataclasses.is_dataclass(found):
        return tuple(field.name for field in dataclasses.fields(found))
    if isinstance(found, list | tuple):
        return tuple(getattr(each, "__name__", str(each)) for each in found)
    return tuple(found.__struct_fields__)
