"""Run as a process of its own: two engines on model runner V2 of different weights, one tier.

    python replay_program.py MODEL OTHER_MODEL URL

Standard input has the prompts, a list of token ids each, as JSON. The last line of standard output
has `REPLY` and, for each prompt, what the first model says; what the second says alone; what it
makes of the first one's answer, at once and as a stream; and how many tokens of it were verified.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH
from reprise.tests.engine_ext.frontend.asked_engine import DELTA, FINAL, Asked, put_back, stored

MAX_TOKENS = 20


async def first_model(model: Path, url: str, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """Have the first model's answers stored."""
    asked = Asked(model, url, **settings())
    try:
        found = []
        for prompt in prompts:
            said = await asked.ask(prompt, max_tokens=MAX_TOKENS)
            # Its own answer, from the tier: the whole of it is verified.
            await asked.written()
            before = asked.counts("tokens_verified")[0]
            again = await asked.ask(prompt, max_tokens=MAX_TOKENS)
            num_verified = asked.counts("tokens_verified")[0] - before
            found.append({"first": said[0], "again": again[0], "own_verified": num_verified})
            await asked.written()
        assert asked.front_end.errors.counts() == {}
        return found
    finally:
        asked.engine.shutdown()


async def second_model(model: Path, url: str, found: list[dict[str, Any]], prompts: Any) -> None:
    """Add what the second model says."""
    of_first = stored(url)
    asked = Asked(model, url, **settings())
    try:
        for prompt, one in zip(prompts, found, strict=True):
            one["alone"] = await asked.from_nothing(prompt, max_tokens=MAX_TOKENS)
            one["verified"] = []
            for kind in (FINAL, DELTA):
                put_back(url, of_first)
                await asked.engine.reset_prefix_cache()
                before = asked.counts("tokens_verified")[0]
                one[kind.name] = await asked.ask(prompt, kind=kind, max_tokens=MAX_TOKENS)
                one["verified"].append(asked.counts("tokens_verified")[0] - before)
                await asked.written()
            one["first_piece"] = asked.pieces[0]
        assert asked.front_end.errors.counts() == {}
        assert asked.engine.vllm_config.use_v2_model_runner
    finally:
        asked.engine.shutdown()


def settings() -> dict[str, Any]:
    """Settings of a small engine."""
    return {
        "max_model_len": 256,
        "kv_cache_memory_bytes": 1 << 26,
        "speculative_config": {"model": PROPOSER_PATH, "num_speculative_tokens": 4},
    }


async def main() -> None:
    """Ask both, one after the other."""
    model, other, url = sys.argv[1:]
    prompts = json.load(sys.stdin)
    found = await first_model(Path(model), url, prompts)
    await second_model(Path(other), url, found, prompts)
    print("REPLY " + json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
