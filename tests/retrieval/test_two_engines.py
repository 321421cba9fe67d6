"""Two real vLLM engines on one machine that share one Redis."""

import pytest

from reprise.eval.live.settled_report import settled_report
from reprise.retrieval.tiers.redis.redis_tier import RedisTier

pytestmark = [
    pytest.mark.engine,
    pytest.mark.redis,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]

QUESTIONS = [
    "How do I cancel my order?",
    "Where is my parcel?",
    "How can I change the delivery address?",
    "I was charged twice, what can I do?",
    "How do I reset my password?",
    "When will I get my refund?",
]


def ask(llm):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=120)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [tuple(o.outputs[0].token_ids) for o in llm.chat(chats, params, use_tqdm=False)]


def accepted(llm):
    [report] = llm.collective_rpc("reprise_stats")
    return report["provider"]["accepted"]


def test_what_one_engine_answered_the_other_drafts(
    demo_model, llm_builder, redis_server, monkeypatch, wait_until
):
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", redis_server.url)
    engines = [llm_builder(demo_model, with_reprise=True) for _ in range(2)]
    try:
        first, second = engines
        answers = ask(first)
        alone = accepted(first)
        settled_report(first)
        tier = RedisTier(redis_server.url, timeout_s=20.0)
        assert sum(len(list(tier.answers(name))) for name in tier.namespaces()) == len(QUESTIONS)
        tier.close()
        tokens = sum(len(answer) for answer in answers)
        # The second one's process may still be loading its model, or catching up.
        wait_until(lambda: settled_report(second)["provider"]["cached_tokens"] > 0.9 * tokens)
        assert ask(second) == answers
        assert accepted(second) > max(alone, 0.7 * tokens)
    finally:
        for engine in engines:
            engine.llm_engine.engine_core.shutdown()
