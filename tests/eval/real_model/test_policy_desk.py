"""The support desk that a real model answers for."""

from collections import Counter

from reprise.eval.demo_data.demo_topics import TOPICS
from reprise.eval.real_model.policy_desk import SYSTEM_PROMPT, make_policy_desk
from reprise.retrieval.query.turns import query_of_messages


def test_same_seed_same_rows() -> None:
    assert make_policy_desk(seed=3) == make_policy_desk(seed=3)
    assert make_policy_desk(seed=3) != make_policy_desk(seed=4)


def test_warm_rows_come_first_and_every_topic_has_its_share() -> None:
    rows = make_policy_desk(topics=12, warm_per_topic=2, timed_per_topic=3)
    assert [row.warm for row in rows] == [True] * 24 + [False] * 36
    assert set(Counter(row.group for row in rows if row.warm).values()) == {2}
    assert set(Counter(row.group for row in rows if not row.warm).values()) == {3}
    assert len({row.id for row in rows}) == len({row.query for row in rows}) == 60


def test_a_prompt_holds_the_article_that_answers_it() -> None:
    bodies = {topic.name: topic.body for topic in TOPICS}
    for row in make_policy_desk(topics=len(TOPICS)):
        assert row.messages is not None
        system, user = row.messages
        assert system["content"].startswith(SYSTEM_PROMPT)
        *_, one, another, shared = system["content"].split("\n\n")
        article = bodies[row.group or ""].format(
            order="[order number]", amount="[amount]", date="[date]"
        )
        assert article in (one, another)
        assert one != another
        assert shared in row.response
        assert user == {"role": "user", "content": row.query}
        assert query_of_messages(row.messages) == row.query
