"""Tables of addresses: dozens of arrays as one argument of compiled code.

The arrays are the fields of a `NamedTuple`, each annotated with its dtype and shape. These
annotations are the only list of them: what makes the arrays, writes down their addresses and opens
them again in compiled code is derived from it.

Example:
    >>> class Pair(NamedTuple):
    ...     counts: Annotated[Any, int32(4)]
    ...     probs: Annotated[Any, float32(4, 2)]
    >>> pair = make_arrays(Pair, 10)
    >>> pair.probs.shape
    (10, 4, 2)
    >>> address_table(pair, num_leading=1).shape
    (3,)
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import numba
import numpy as np
import numpy.typing as npt

from reprise.spec.runtime.compiled import float32_table, int16_table, int32_table

Arrays = TypeVar("Arrays", bound=tuple[Any, ...])


class Array(NamedTuple):
    """The dtype of a field and its shape behind the leading sizes that all fields share."""

    dtype: str
    shape: tuple[int, ...]


def int16(*shape: int) -> Array:
    return Array("int16", shape)


def int32(*shape: int) -> Array:
    return Array("int32", shape)


def float32(*shape: int) -> Array:
    return Array("float32", shape)


def fields_of(kind: type[tuple[Any, ...]]) -> dict[str, Array]:
    """Read a tuple's fields, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: get_args(hint)[1] for name, hint in hints.items()}


def make_arrays(kind: type[Arrays], *leading: int) -> Arrays:
    """Make the arrays, all zero; every shape begins with the sizes `leading`."""
    fields = fields_of(kind).values()
    return kind(*(np.zeros((*leading, *field.shape), field.dtype) for field in fields))


def address_table(arrays: tuple[Any, ...], *, num_leading: int = 0) -> npt.NDArray[np.int64]:
    """Write down the arrays' addresses, then the leading sizes: [fields + num_leading] int64.

    The arrays have to be kept alive as long as the table is in use.
    """
    leading = arrays[0].shape[:num_leading]
    return np.array([*(array.ctypes.data for array in arrays), *leading], np.int64)


def opener(kind: type[tuple[Any, ...]], *, num_leading: int = 0) -> Callable[..., Any]:
    """Make the compiled function from a table of `address_table` to the tuple of arrays.

    Compiled code cannot go through fields of different types, so the function is written out as
    source. It is compiled into its callers and cached with them, not by itself: it has no file.
    """
    fields = fields_of(kind)
    leading = [f"table[{len(fields) + i}]" for i in range(num_leading)]
    views = []
    for i, field in enumerate(fields.values()):
        sizes = "".join(f"{size}, " for size in (*leading, *field.shape))
        views.append(f"{field.dtype}_table(table[{i}], ({sizes}))")
    source = f"def open_arrays(table):\n    return kind({', '.join(views)})\n"
    namespace: dict[str, Any] = {
        "kind": kind,
        "int16_table": int16_table,
        "int32_table": int32_table,
        "float32_table": float32_table,
    }
    exec(source, namespace)
    compile_inline = numba.njit(nogil=True, error_model="numpy", forceinline=True)
    result: Callable[..., Any] = compile_inline(namespace["open_arrays"])
    return result
