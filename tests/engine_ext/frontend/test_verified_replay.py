"""Stored answers that nothing vouches for: on real engines, of equal and of other weights."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.retrieval.api.answer import Answer
from reprise.tests.engine_ext.frontend.asked_engine import (
    DELTA,
    FINAL,
    Asked,
    change,
    num_common,
    other_weights,
    put_back,
    stored,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

QUESTIONS = list(dict.fromkeys(row.prompt for row in make_demo_trace()))[:4]


async def whole_answers(asked: Asked) -> None:
    for question in QUESTIONS:
        expected = await asked.from_nothing(question)
        assert await asked.ask(question) == expected
    await asked.written()
    assert asked.counts("checked", "exact") == (0, 0)
    for kind in (FINAL, DELTA):
        for question in QUESTIONS:
            expected = await asked.from_nothing(question)
            assert await asked.ask(question, kind=kind) == expected
            assert asked.last.num_cached_tokens is not None
        await asked.written()
    num = 2 * len(QUESTIONS)
    assert asked.counts("checked", "verified", "exact") == (num, num, 0)


async def other_limits(asked: Asked) -> None:
    for max_tokens in (7, 1, 30, 90):
        expected = await asked.from_nothing(QUESTIONS[0], max_tokens=max_tokens)
        assert await asked.ask(QUESTIONS[0], max_tokens=max_tokens) == expected
        await asked.written()


async def stop_strings(asked: Asked) -> None:
    text = (await asked.from_nothing(QUESTIONS[1]))[1]
    params: dict[str, Any] = {"stop": [text[20:26]], "include_stop_str_in_output": True}
    expected = await asked.from_nothing(QUESTIONS[1], **params)
    assert expected[2:] == ("stop", text[20:26])
    for kind in (FINAL, DELTA):
        assert await asked.ask(QUESTIONS[1], kind=kind, **params) == expected
        await asked.written()


async def whatever_is_stored(asked: Asked, url: str) -> None:
    """Its first tokens are right, and then it is wrong: at any place, in any way."""
    expected = {question: await asked.from_nothing(question) for question in QUESTIONS}

    def at(place: int) -> Callable[[list[int]], list[int]]:
        return lambda ids: [*ids[:place], (ids[place] + 1) % 200 + 3, *ids[place + 1 :]]

    for changed in (
        at(0), at(1), at(5), at(-1),
        lambda ids: ids[:4],
        lambda ids: [*ids, *ids],
        lambda ids: ids[3:],
        lambda _: [1 << 30] * 9,
    ):  # fmt: skip
        await asked.written()
        change(url, changed)
        for question in QUESTIONS:
            for kind in (FINAL, DELTA):
                assert await asked.ask(question, kind=kind) == expected[question]
                asked.front_end.exact.memory.clear()
    assert asked.front_end.errors.counts() == {}


async def tenants(asked: Asked) -> None:
    expected = await asked.from_nothing(QUESTIONS[2], salt="a")
    await asked.ask(QUESTIONS[2], salt="a")
    await asked.written()
    before = asked.counts("checked")
    assert await asked.ask(QUESTIONS[2], salt="b") == expected
    assert asked.counts("checked") == before
    assert await asked.ask(QUESTIONS[2], salt="a") == expected
    assert asked.counts("checked") == (before[0] + 1,)
    await asked.written()


async def only_plain_greedy_requests(asked: Asked) -> None:
    """All others are neither looked for nor written."""
    for params in (
        {"seed": 5, "temperature": 0.9},
        {"repetition_penalty": 1.2},
        {"min_tokens": 4},
        {"logit_bias": {7: 1.0}},
        {"allowed_token_ids": [5, 6, 7]},
    ):
        shared = asked.front_end.exact.shared
        before = dict(shared.outcomes)
        first = await asked.ask("an odd one", **params)
        await asked.written()
        assert await asked.ask("an odd one", **params) == first
        assert dict(shared.outcomes) == before


async def followers(asked: Asked) -> None:
    """Two at once: one check, one generation. The first may have ended before a busy machine has
    looked the second one up, which then repeats it; so two are asked again."""
    expected = await asked.from_nothing(QUESTIONS[3])
    await asked.written()
    before = asked.counts("checked", "followed", "exact")
    for times in range(1, 4):
        both = await asyncio.gather(*(asked.ask(QUESTIONS[3], kind=DELTA) for _ in range(2)))
        assert both == [expected, expected]
        checked, followed, exact = asked.counts("checked", "followed", "exact")
        assert checked == before[0] + times
        assert (followed - before[1]) + (exact - before[2]) == times
        await asked.written()
        if followed > before[1]:
            return
    pytest.fail("of three questions asked twice at once, none was followed")


async def clients_that_leave(asked: Asked) -> None:
    """At whatever moment: while it is looked up, checked, gone on with."""
    expected = await asked.from_nothing(QUESTIONS[3], max_tokens=90)
    for delay_s in (0.0, 0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15):
        await asked.written()
        task = asyncio.create_task(asked.ask(QUESTIONS[3], kind=DELTA, max_tokens=90))
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    replays = asked.front_end.others.verified._replays

    def left() -> list[Any]:
        going_on = [*replays._waiting, *replays._going_on, *replays._check_of]
        unfinished = asked.engine.get_num_unfinished_requests()
        return [each for each in (going_on, len(asked.front_end.flights), unfinished) if each]

    deadline_s = time.monotonic() + 60.0
    while left():  # until the engine has heard of it
        assert time.monotonic() < deadline_s, left()
        await asyncio.sleep(0.02)
    assert len(replays) == 0
    assert await asked.ask(QUESTIONS[3], max_tokens=90) == expected


async def what_is_reported(asked: Asked) -> None:
    await asked.written()
    wants = {"extra_args": {"reprise_info": True}}
    tokens = (await asked.ask(QUESTIONS[0], **wants))[0]
    assert asked.last.reprise_info.cache == ("verified",)
    assert len(asked.last.prompt_token_ids) + len(tokens) < 512
    await asked.engine.report()
    stats = (await asked.engine.get_stats())["front_end"]
    assert stats["shared"]["unproven"] > 0
    assert stats["counts"]["tokens_verified"] > stats["counts"]["verified"] > 0


async def test_answers_are_those_of_the_engine_whatever_is_stored(
    demo_model: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/answers.sqlite"
    asked = Asked(demo_model, url)
    try:
        await whole_answers(asked)
        await other_limits(asked)
        await stop_strings(asked)
        await tenants(asked)
        await only_plain_greedy_requests(asked)
        await followers(asked)
        await clients_that_leave(asked)
        await what_is_reported(asked)
        await whatever_is_stored(asked, url)
        for question in QUESTIONS:
            await asked.ask(question)
        await asked.written()
        expected = {q: await asked.from_nothing(q) for q in QUESTIONS}
    finally:
        asked.engine.shutdown()
    other = Asked(other_weights(demo_model, tmp_path / "other"), url)
    try:
        await answers_of_another_model(other, expected, url)
    finally:
        other.engine.shutdown()


async def answers_of_another_model(other: Asked, expected: dict[str, Any], url: str) -> None:
    """They are verified up to where the two models part, and not a token further."""
    of_first: list[Answer] = stored(url)
    parted = num_checked = 0
    for question in QUESTIONS:
        own = await other.from_nothing(question)
        common = num_common(own[0], expected[question][0])
        parted += 0 < common < len(own[0])
        for kind in (FINAL, DELTA):
            put_back(url, of_first)
            await other.engine.reset_prefix_cache()
            before = other.counts("checked", "tokens_verified")
            assert await other.ask(question, kind=kind) == own
            num_checked += 1
            assert other.counts("checked", "tokens_verified") == (
                before[0] + 1,
                before[1] + common,
            )
            if kind is DELTA and common:
                assert other.pieces[0] >= common  # all that is verified comes at once
            await other.written()
    assert parted > 0, "the models say the same: the test could not fail"
    assert other.counts("checked", "exact") == (num_checked, 0)
    assert other.front_end.errors.counts() == {}
