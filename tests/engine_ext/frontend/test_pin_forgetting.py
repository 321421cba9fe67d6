"""What is erased is unpinned in the engines, whatever fails first."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.frontend import pin_forgetting
from reprise.engine_ext.frontend.pin_forgetting import PinForgetting
from reprise.retrieval.api.invalidation import Invalidation, all_until


class Engines:
    """Remember what they are asked; fail as often as they are told."""

    def __init__(self) -> None:
        self.asked: list[Invalidation] = []
        self.num_failures = 0
        self.errors = ErrorCounter()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.forgetting = PinForgetting(self.forget_pins, errors=self.errors)
        self.forgetting.pause_s = 0.0

    async def forget_pins(self, invalidation: Invalidation) -> None:
        await self.go_on.wait()
        if self.num_failures:
            self.num_failures -= 1
            raise RuntimeError("no engine answers")
        self.asked.append(invalidation)


@pytest.mark.parametrize(
    ("conditions", "is_asked"),
    [
        ({"everything": True}, True),
        ({"namespace": "a"}, True),
        ({"namespace": ""}, True),
        ({"tenant": "a"}, True),
        ({"namespace": "a", "answer_id": "1"}, False),
        ({"prompt": "what?"}, False),
        ({"tenant": "a", "older_than_s": 60}, False),
        ({"model_key": "m"}, False),
    ],
)
async def test_what_names_namespaces_unpins(conditions: dict[str, Any], is_asked: bool) -> None:
    engines, invalidation = Engines(), Invalidation.create(**conditions)
    engines.forgetting.begin(invalidation)
    assert engines.forgetting.num_pending == is_asked
    assert await engines.forgetting.finish(within_s=10)
    assert engines.asked == [invalidation] * is_asked


async def test_what_is_not_known_may_have_named_them(
    advance_clock: Callable[[float], None],
) -> None:
    engines = Engines()
    old = Invalidation.create(everything=True)
    advance_clock(10)
    late = Engines()
    for each in engines, late:
        each.forgetting.begin(old)
        assert await each.forgetting.finish(within_s=10)
    assert (engines.asked, late.asked) == ([old], [])  # no pin is older than its engine
    unknown = all_until(old.made_s + 20)
    late.forgetting.begin(unknown)
    assert await late.forgetting.finish(within_s=10)
    assert late.asked == [unknown]


async def test_engines_are_asked_until_they_have_done_so() -> None:
    engines = Engines()
    engines.num_failures = 2
    one, other = (Invalidation.create(namespace=name) for name in ("one", "other"))
    engines.forgetting.begin(one)
    engines.forgetting.begin(other)
    assert await engines.forgetting.finish(within_s=10)
    assert engines.asked == [one, other]
    assert engines.errors.counts() == {"forget_pins": 2}


async def test_an_engine_that_hangs_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_forgetting, "_MAX_WAITING", 3)
    engines = Engines()
    engines.go_on.clear()
    for number in range(5):
        engines.forgetting.begin(Invalidation.create(namespace=f"n{number}"))
    assert not await engines.forgetting.finish(within_s=0.01)
    assert engines.forgetting.num_pending == 2  # what did not fit is part of everything
    engines.go_on.set()
    assert await engines.forgetting.finish(within_s=10)
    assert any(each.everything for each in engines.asked)
    engines.go_on.clear()
    engines.forgetting.begin(Invalidation.create(everything=True))
    await asyncio.sleep(0)
    engines.forgetting.close()
    assert not await engines.forgetting.finish(within_s=10)
