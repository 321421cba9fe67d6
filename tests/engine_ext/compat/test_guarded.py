"""Whatever fails in our part of a method of vLLM's, the method answers, and runs once."""

from typing import Any

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.compat import guarded
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.core.error_counter import ErrorCounter


class Runner:
    """Of vLLM's: counts its steps."""

    def __init__(self, *, fails: bool = False) -> None:
        self.steps = 0
        self.fails = fails

    def step(self, number: int, *, double: bool = False) -> int:
        """Of the runner."""
        self.steps += 1
        if self.fails:
            raise ArithmeticError("vLLM's own")
        return number * (2 if double else 1)


@pytest.fixture
def runner_class(monkeypatch: pytest.MonkeyPatch) -> type[Runner]:
    """A class of its own to be wrapped, and no errors yet."""

    class Fresh(Runner):
        step = Runner.step

    monkeypatch.setattr(guarded, "step_errors", ErrorCounter())
    return Fresh


def wrap_step_method(owner: type, name: str, ours: Any, *, otherwise: Any = None) -> None:
    """As the registry does it."""
    own = getattr(owner, name)
    wrapped = guarded.guarded(own, ours, fallback=otherwise, place=f"Fresh.{name}")
    setattr(owner, name, wrapped)


def wraps(ours: Any) -> Any:
    return lambda original, *_, **__: ours(original)


def before(_: Original) -> int:
    raise KeyError("before")


def after(original: Original) -> int:
    original()
    raise KeyError("after")


def instead(original: Original) -> int:
    original.instead(lambda: 40)
    raise KeyError("instead")


def twice(original: Original) -> int:
    original()
    return int(original())


@pytest.mark.parametrize(
    ("ours", "found", "steps"),
    [(before, 14, 1), (after, 14, 1), (twice, 14, 1), (instead, 40, 0)],
)
def test_what_fails_of_ours_is_counted_and_vllms_result_stands(
    runner_class: type[Runner], ours: Any, found: int, steps: int
) -> None:
    wrap_step_method(runner_class, "step", wraps(ours))
    runner = runner_class()
    for time in range(1, 4):
        assert runner.step(7, double=True) == found
        assert runner.steps == time * steps
        assert guarded.step_errors.counts() == {"Fresh.step": time}


def test_our_result_stands_if_nothing_fails(runner_class: type[Runner]) -> None:
    wrap_step_method(runner_class, "step", lambda original, *_, **__: original() + 1)
    assert runner_class().step(7) == 8
    assert guarded.step_errors.counts() == {}


@pytest.mark.parametrize("ours", [after, lambda original: original(), twice])
def test_what_fails_of_vllms_goes_on_to_the_engine(runner_class: type[Runner], ours: Any) -> None:
    wrap_step_method(runner_class, "step", wraps(ours))
    runner = runner_class(fails=True)
    with pytest.raises(ArithmeticError, match="vLLM's own"):
        runner.step(7)
    assert runner.steps == 1
    assert guarded.step_errors.counts() == {}


def test_vllms_error_is_not_hidden_by_one_of_ours(runner_class: type[Runner]) -> None:
    def ours(original: Original) -> int:
        try:
            return int(original())
        finally:
            raise KeyError("ours")

    wrap_step_method(runner_class, "step", wraps(ours))
    with pytest.raises(ArithmeticError, match="vLLM's own"):
        runner_class(fails=True).step(7)


@pytest.mark.parametrize(("fails_too", "found"), [(False, 107), (True, 7)])
def test_another_part_takes_over_where_vllms_alone_is_not_enough(
    runner_class: type[Runner], fails_too: bool, found: int
) -> None:
    def otherwise(original: Original) -> int:
        if fails_too:
            raise KeyError("otherwise")
        return int(original()) + 100

    wrap_step_method(runner_class, "step", wraps(before), otherwise=wraps(otherwise))
    runner = runner_class()
    assert (runner.step(7), runner.steps) == (found, 1)
    # It does not where the original has run.
    del runner_class.step
    runner_class.step = Runner.step  # type: ignore[method-assign]
    wrap_step_method(runner_class, "step", wraps(after), otherwise=wraps(otherwise))
    assert (runner.step(7), runner.steps) == (7, 2)


def test_an_error_that_is_none_of_ours_to_swallow_passes(runner_class: type[Runner]) -> None:
    def ends(_: Original) -> int:
        raise SystemExit("the worker ends")

    wrap_step_method(runner_class, "step", wraps(ends))
    with pytest.raises(SystemExit):
        runner_class().step(7)


def test_vllms_own_runs_with_another_last_argument_once(runner_class: type[Runner]) -> None:
    def hook(original: Original, _runner: Runner, number: int) -> Any:
        return original.with_last(number + 1)

    wrap_step_method(runner_class, "step", hook)
    runner = runner_class()
    assert runner.step(3) == 4
    assert runner.steps == 1


def test_arguments_by_name_are_not_mistaken_for_the_last(runner_class: type[Runner]) -> None:
    def hook(original: Original, *_: Any, **__: Any) -> Any:
        return original.with_last(7)

    wrap_step_method(runner_class, "step", hook)
    assert runner_class().step(3, double=True) == 6
    assert sum(guarded.step_errors.counts().values()) == 1
