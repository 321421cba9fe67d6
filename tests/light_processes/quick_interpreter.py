"""Have Triton's interpreter do once what it does at each call of a function, to the same end.

Of a kernel in the interpreter more than half of the time goes into what changes nothing:

* It replaces what is in `triton.language` before each launch, and again before each call of a
  function from a kernel, where all of it is replaced already; and it searches for what to replace.
* It computes all sums, differences and products of integers once more in 64 bits, for an assertion
  that is left out unless kernels are debugged.
* It makes a table of all types whenever it looks one up.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from inspect import getmembers, ismodule
from types import ModuleType
from typing import Any


def begin(interpreter: ModuleType) -> None:
    """Change `triton.runtime.interpreter`, which has just been imported."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter._get_np_dtype = _of_each_type(interpreter)
    interpreter._patch_builtin = _with_a_list(interpreter)
    interpreter._patch_lang = _once_a_launch(interpreter)


def _of_each_type(interpreter: ModuleType) -> Callable[[Any], Any]:
    language, numpy_type = interpreter.tl, interpreter._get_np_dtype
    of_number = cache(numpy_type)

    def get_np_dtype(type_: Any) -> Any:
        if isinstance(type_, language.block_type):
            type_ = type_.element_ty
        return (numpy_type if isinstance(type_, language.pointer_type) else of_number)(type_)

    return get_np_dtype


def _with_a_list(interpreter: ModuleType) -> Callable[..., None]:
    language = interpreter.tl

    @cache
    def builtins_of(place: Any) -> list[tuple[str, Any]]:
        return [each for each in getmembers(place) if language.core.is_builtin(each[1])]

    def patch_builtin(place: Any, builder: Any, scope: Any) -> None:
        for name, member in builtins_of(place):
            interpreter._patch_attr(place, name, member, builder, scope)

    return patch_builtin


def _once_a_launch(interpreter: ModuleType) -> Callable[..., Any]:
    language, patch = interpreter.tl, interpreter._patch_lang
    patched: set[str] = set()
    """Names of the modules that are, while a kernel runs."""

    class Scope(interpreter._LangPatchScope):  # type: ignore[name-defined, misc]
        def restore(self) -> None:
            super().restore()
            patched.clear()

    @cache
    def languages_of(function: Any) -> frozenset[str]:
        found = filter(ismodule, function.__globals__.values())
        return frozenset(each.__name__ for each in found if each in (language, language.core))

    def patch_lang(function: Any) -> Any:
        wanted = languages_of(function)
        if wanted and wanted <= patched:
            return Scope()  # a function that a kernel calls
        scope = patch(function)
        patched.update(wanted)
        return scope

    interpreter._LangPatchScope = Scope
    return patch_lang
