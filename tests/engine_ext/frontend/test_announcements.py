"""The lines at the start, when near answers are ready, and at the end."""

from types import SimpleNamespace
from typing import Any

import pytest

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.frontend.announcements import announce_near_answers, end_line, start_line
from reprise.retrieval import RetrievalConfig
from reprise.retrieval.api.retriever import RetrievalHealth
from reprise.retrieval.in_process.local_retriever import LocalRetriever


def line(**settings: Any) -> str:
    vllm_config: Any = SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=12)
    )
    return start_line(load_config(settings), vllm_config, searches_here=True)


def test_the_first_line_says_what_is_on() -> None:
    plain = line()
    for part in (
        "model runner V1",
        "drafts of up to 12 tokens",
        "exact hits for temperature 0 or a seed, of this process",
        "namespaces from API keys that the server checks and from cache_salt",
        "answers end with the server",
        "near answers once all-MiniLM-L6-v2 is loaded",
    ):
        assert part in plain
    other = line(
        namespace="acme",
        serving={"exact_hits": "always", "exact_hits_from_others": "trusted"},
        retrieval={"url": "redis://:secret@host:1/0"},
    )
    assert "one namespace for all requests: acme" in other
    assert "exact hits for all requests, sampled ones too, shared through the tier" in other
    assert "answers kept in redis://:***@host:1/0" in other
    assert "no exact hits" in line(serving={"enabled": False})
    pinning = line(kv_pins={"enabled": True, "max_share": 0.3})
    assert "prefixes pinned in up to 30% of the KV blocks" in pinning
    assert "pinned" not in plain
    bare = line(features={"exact": False, "drafts": False, "monitoring": False})
    for part in ("no drafts", "no exact hits", "no near answers", "no metrics"):
        assert part in bare
        assert part not in plain


async def test_near_answers_are_announced_once_they_are_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    retriever = LocalRetriever(RetrievalConfig(embedding_model="lexical", clauses=False))
    try:
        with caplog.at_level("INFO"):
            await announce_near_answers(retriever)
        took_s = retriever.health().ready_after_s
    finally:
        retriever.close()
    # Other tests' threads may have had something to say too.
    (line,) = [each for each in caplog.messages if "near answers are ready after" in each]
    assert f"ready after {took_s:.1f} s (lexical:512, 0 answers held" in line


async def test_no_near_answers_are_announced_while_there_is_no_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = iter(
        [
            RetrievalHealth("starting"),
            RetrievalHealth("degraded", detail="no retrieval process"),
            RetrievalHealth("ready", "lexical:512", ready_after_s=7.25),
        ]
    )
    retriever: Any = SimpleNamespace(health=told.__next__, stats=lambda: SimpleNamespace(answers=3))
    with caplog.at_level("INFO"):
        await announce_near_answers(retriever)
    assert next(told, None) is None
    (line,) = [each for each in caplog.messages if "near answers are ready after" in each]
    # As `/reprise/health` and the metric say it.
    assert "ready after 7.2 s (lexical:512, 3 answers held)" in line


def test_the_last_line_says_what_was_saved() -> None:
    assert end_line({"counts": {}, "near_answers": None}) is None
    counts = {"exact": 3, "followed": 1, "miss": 6, "tokens_saved": 40}
    # Another retrieval process has begun to count anew.
    near = {"semantic": 4, "clause": 1, "miss": 1}
    said = end_line({"counts": counts, "near_answers": near, "retrieval": {"found": 2}})
    assert said == (
        "Reprise: of 10 requests 3 were exact hits, 1 followed an identical one, "
        "5 had near answers; 40 tokens were not generated."
    )


def test_the_last_line_tells_of_answers_that_were_verified() -> None:
    counts = {"miss": 8, "checked": 8, "verified": 7, "tokens_verified": 352}
    assert end_line({"counts": counts, "near_answers": None}) == (
        "Reprise: of 8 requests 0 were exact hits, 0 followed an identical one, 7 began with a "
        "stored answer that was verified; 0 tokens were not generated, 352 were verified, not "
        "generated one by one."
    )
