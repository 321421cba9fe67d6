"""Exact hits of real servers on one Redis, after a restart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.redis,
    pytest.mark.timeout(1800),
]
QUESTIONS = [f"What does parcel {number} cost?" for number in range(3)]


@pytest.mark.parametrize(
    ("whose", "says", "outcome"),
    [("trusted", "exact", "hit"), ("verified", "verified", "unproven")],
)
def test_the_first_repeat_of_a_restarted_server_is_a_hit(
    whose: str,
    says: str,
    outcome: str,
    demo_model: Path,
    server_builder: Callable[..., Any],
    redis_server: Any,
    wait_until: Callable[..., None],
) -> None:
    environment = {
        "REPRISE_RETRIEVAL__URL": redis_server.url,
        "REPRISE_SERVING__EXACT_HITS_FROM_OTHERS": whose,
        # This machine may stand still for longer than a server may wait.
        "REPRISE_SERVING__EXACT_BUDGET_S": "1.0",
    }

    def start(*arguments: str) -> Any:
        return server_builder(demo_model, *arguments, with_reprise=True, **environment)

    def shared(server: Any) -> Any:
        return server.send("/reprise/stats").json["front_end"]["shared"]

    def is_ready(server: Any) -> None:
        server.wait()
        server.wait_for_retrieval()
        wait_until(lambda: shared(server)["fingerprint"] is not None)

    first = start()
    try:
        is_ready(first)
        made = [first.chat(question) for question in QUESTIONS]
        assert all(reply.generated for reply in made)
        fingerprint = shared(first)["fingerprint"]
        wait_until(lambda: shared(first)["written"] == len(QUESTIONS))
    finally:
        first.stop()  # which writes what waits to be written

    again = start()
    try:
        is_ready(again)
        assert shared(again)["fingerprint"] == fingerprint
        repeated = [again.chat(question) for question in QUESTIONS]
        assert [reply.cache for reply in repeated] == [says] * len(QUESTIONS)
        assert [reply.text for reply in repeated] == [reply.text for reply in made]
        assert shared(again)[outcome] == len(QUESTIONS)
        # Each key is a tenant of its own.
        assert again.chat(QUESTIONS[0], key=again.api_keys[1]).generated
        removed = again.send("/reprise/cache?everything=true", method="DELETE").json
        assert removed["removed"] >= len(QUESTIONS)
        assert all(again.chat(question).generated for question in QUESTIONS)
    finally:
        again.stop()
