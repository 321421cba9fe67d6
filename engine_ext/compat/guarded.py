"""Guards hooks that run in a step of vLLM's: they fail no step, and vLLM's own part runs once.

Every patch of `Kind.STEP` is guarded. Where a hook raises, vLLM's own method answers: it is called
then if it was not called before, and its result stands if it was. The error is counted and logged
once. What vLLM's own method raises is vLLM's, and reaches the engine as it came.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from reprise.engine_ext.core.error_counter import ErrorCounter

step_errors = ErrorCounter()
"""What failed inside steps of this process."""


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

    def with_last(self, argument: Any) -> Any:
        """Run it with another last argument, where all were given by position.

        Raises:
            RuntimeError: it, or what stood in for it, has run before.
            ValueError: they were not.
        """
        if not isinstance(self._call, partial) or self._call.keywords:
            raise ValueError(f"expected arguments by position, came {self._call}")
        return self.instead(partial(self._call.func, *self._call.args[:-1], argument))

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


def guarded(
    own: Callable[..., Any], hook: Part, *, fallback: Part | None = None, place: str
) -> Callable[..., Any]:
    """Wrap a method that vLLM runs in a step, so that no hook can fail the step.

    Args:
        own: vLLM's.
        hook: our part, which calls the original once, before, after or instead of what it does.
        fallback: what is done if `hook` failed before the original was called, where calling it
            is not enough; None: it is called.
        place: the name under which errors are counted.
    """

    @wraps(own)
    def method(*args: Any, **kwargs: Any) -> Any:
        theirs = Original(partial(own, *args, **kwargs))
        for part in (hook, fallback):
            if part is None:
                continue
            try:
                return _run_part(place, part, theirs, args, kwargs)
            except Exception as error:
                if theirs.error is not None:
                    raise theirs.error from None
                step_errors.record(place, error)
            if theirs.has_run:
                return theirs.result
        return theirs()

    return method


def _run_part(
    _place: str, part: Part, theirs: Original, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run one part; tests let it fail here."""
    return part(theirs, *args, **kwargs)
