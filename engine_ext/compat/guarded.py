"""Our part of vLLM's methods that run in a step: it fails no step, and vLLM's part runs once.

Whatever of ours runs between the scheduling of a step and its output is put in place by
`wrap_step_method`. Where our part raises, vLLM's own method answers: it is called then if it was
not called before, and its result stands if it was. The error is counted and logged once. What
vLLM's own method raises is vLLM's, and goes on to the engine as it came.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from reprise.engine_ext.core.error_counter import ErrorCounter

step_errors = ErrorCounter()
"""What failed inside steps of this process."""

_PLACE = "_reprise_place"


class Original:
    """vLLM's own method, with the arguments that it was called with; it runs once at most."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.has_run = False
        self.result: Any = None
        self.error: BaseException | None = None

    def __call__(self) -> Any:
        """Run it.

        Raises:
            RuntimeError: it, or what stood in for it, has run before.
        """
        return self.instead(self._call)

    def instead(self, call: Callable[[], Any]) -> Any:
        """Run something in its place, which then counts as vLLM's own: it is not run again.

        Raises:
            RuntimeError: it, or what stood in for it, has run before.
        """
        if self.has_run:
            raise RuntimeError("vLLM's own method has run already")
        self.has_run = True
        try:
            self.result = call()
        except BaseException as error:
            self.error = error
            raise
        return self.result


Part = Callable[..., Any]
"""Takes an `Original`, then what the method takes, and returns what the method returns."""


def wrap_step_method(
    owner: Any, name: str, ours: Part, *, otherwise: Part | None = None, place: str | None = None
) -> bool:
    """Put `ours` in place of a method that vLLM runs in a step; once.

    Args:
        owner: a class of vLLM's, or one of its objects.
        name: of the method.
        ours: our part, which calls the original once, before, after or instead of what it does.
        otherwise: what is done if `ours` failed before the original was called, where calling it
            is not enough; None: it is called.
        place: the name under which errors are counted; None: owner and method.

    Returns:
        False: our part is there already.
    """
    if hasattr(vars(owner).get(name), _PLACE):
        return False
    original: Callable[..., Any] = getattr(owner, name)
    is_class = isinstance(owner, type)
    where = place or f"{owner.__name__ if is_class else type(owner).__name__ + '()'}.{name}"

    @wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        theirs = Original(partial(original, *args, **kwargs))
        for part in (ours, otherwise):
            if part is None:
                continue
            try:
                return _run_part(where, part, theirs, args, kwargs)
            except Exception as error:
                if theirs.error is not None:
                    raise theirs.error from None
                step_errors.record(where, error)
            if theirs.has_run:
                return theirs.result
        return theirs()

    setattr(method, _PLACE, where)
    setattr(owner, name, method)
    return True


def place_of(method: Any) -> str | None:
    """The name under which a wrapped method's errors are counted; None: it is not wrapped."""
    place: str | None = getattr(method, _PLACE, None)
    return place


def _run_part(
    _place: str, part: Part, theirs: Original, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run one part; tests let it fail here."""
    return part(theirs, *args, **kwargs)
