# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Compiled code: no interpreter lock, cached on disk, and arrays reached by address."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba import carray, types
from numba.extending import intrinsic

from reprise.spec.runtime.source_stamp import source_stamp

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on first use (numba, nopython); the machine code is kept beside the source.

    numba keeps a function's code for as long as its own file is unchanged, though functions and
    constants of other files are compiled into it. The stamp makes its name on disk that of all
    these sources.

    All is inlined into what Python calls: the trace and the scratch are dozens of arrays, which a
    call that is left would copy, at 1.4 us each time.
    """
    function.__qualname__ = f"{function.__name__}-{source_stamp(function.__module__)}"
    result: Function = numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=True)(
        function
    )
    return result


def _pointer_cast(target: Any) -> Any:
    """An intrinsic that turns an int64 address into a pointer to `target`."""

    def cast(typing_context: Any, address: Any) -> Any:
        del typing_context, address

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(target)(types.int64), generate

    return intrinsic(cast)


_as_int16_pointer = _pointer_cast(types.int16)
_as_int32_pointer = _pointer_cast(types.int32)
_as_int64_pointer = _pointer_cast(types.int64)
_as_float32_pointer = _pointer_cast(types.float32)


@compiled
def int32_at(address, length):
    """The int32 array [length] that begins at `address`.

    One call can so serve a batch whose requests own arrays of different lengths. Passing arrays as
    arguments would cost about 0.2 us each. Whoever made the array keeps it alive meanwhile.
    """
    return carray(_as_int32_pointer(address), (length,))


@compiled
def int32_table(address, shape):
    """The int32 array of this shape, a tuple, that begins at `address`."""
    return carray(_as_int32_pointer(address), shape)


@compiled
def int64_at(address, length):
    """The int64 array [length] that begins at `address`."""
    return carray(_as_int64_pointer(address), (length,))


@compiled
def int64_table(address, shape):
    """The int64 array of this shape, a tuple, that begins at `address`."""
    return carray(_as_int64_pointer(address), shape)


@compiled
def int16_table(address, shape):
    """The int16 array of this shape, a tuple, that begins at `address`."""
    return carray(_as_int16_pointer(address), shape)


@compiled
def float32_table(address, shape):
    """The float32 array of this shape, a tuple, that begins at `address`."""
    return carray(_as_float32_pointer(address), shape)
