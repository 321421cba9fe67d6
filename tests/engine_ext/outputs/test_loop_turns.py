"""Long work on the loop: one piece in each turn, whoever's it is, until it is stopped."""

import asyncio

from reprise.engine_ext.outputs.loop_turns import LoopTurns


async def test_pieces_of_several_tasks_take_turns_and_stop_when_they_are_to() -> None:
    turns, pieces = LoopTurns(), []
    turn = 0

    async def work(name: str) -> None:
        while True:
            async with turns.one_piece:
                await asyncio.sleep(0)
                pieces.append((turn, name))

    for name in "abc":
        turns.start(work(name))
    for turn in range(1, 31):  # noqa: B007 - see `work`
        await asyncio.sleep(0)
    seen = [turn for turn, _ in pieces]
    assert len(seen) == len(set(seen)) > 10
    counts = {name: sum(name == who for _, who in pieces) for name in "abc"}
    assert max(counts.values()) - min(counts.values()) <= 1
    turns.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
