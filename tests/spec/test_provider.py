"""The request life cycle of DraftProvider."""

from reprise.spec.api.scheduling_mode import SchedulingMode
from reprise.spec.runtime.layout import TOKEN
from reprise.tests.spec.providers import (
    answers_of,
    near,
    new_provider,
    replay,
)


def test_near_answers_that_come_again_go_on_where_they_are() -> None:
    provider = new_provider()
    first, later = list(range(100, 160)), list(range(300, 340))
    provider.start("r", [1, 2, 3])
    provider.attach("r", [near("a", first, 0.6)])
    replay(provider, "r", first[:30])
    # The new one comes first: the other begins elsewhere in their text, and goes on where it is.
    provider.attach("r", [near("b", later, 0.9), near("a", first, 0.7)])
    req_idx = provider._live["r"].req_idx  # type: ignore[union-attr]
    text = provider._live["r"]._near[0][:, TOKEN]  # type: ignore[union-attr]
    unseen, followed = provider._table.trace.pointers[req_idx, 0, :2]
    assert unseen == -1
    assert text[followed] == first[30]
    assert provider._table.trace.hits[req_idx, 0, 1] > provider._table.trace.hits[req_idx, 0, 0]
    replay(provider, "r", first[30:])
    stats = provider.finish("r")
    assert stats is not None
    # The one accepted before it came again, and those after.
    assert stats.accepted_by_answer == {"a": stats.accepted}
    assert stats.accepted > 40


def test_a_near_answer_is_drafted_at_length_from_the_first_token() -> None:
    provider = new_provider()
    provider.start("r", [1, 2, 3])
    provider.attach("r", [near("a", list(range(100, 130)), 0.98)])
    assert provider.propose("r", limit=8)[:4] == [100, 101, 102, 103]
    provider.observe("r", [100])
    draft = provider.propose("r", limit=16)
    assert len(draft) >= 8
    assert draft == list(range(101, 101 + len(draft)))


def test_counters_name_source_and_answer() -> None:
    provider = new_provider()
    provider.start("r", [1, 2, 3])
    provider.attach("r", [near("a", list(range(100, 130)), 0.98)])
    provider.observe("r", [100])
    assert provider.propose("r", limit=3) == [101, 102, 103]
    provider.observe("r", [101, 102, 7])
    live = provider.stats()
    stats = provider.finish("r")
    assert stats is not None
    assert (stats.steps, stats.emitted, stats.drafted, stats.accepted) == (1, 4, 3, 2)
    assert stats.by_source["near_answer"].accepted == 2
    assert stats.accepted_by_answer == {"a": 2}
    total = provider.stats()
    for counts in (live, total):
        assert (counts.requests, counts.steps, counts.drafted, counts.accepted) == (1, 1, 3, 2)
    assert total.errors == 0


def test_another_clause_takes_over() -> None:
    provider = new_provider()
    first, second = list(range(100, 120)), list(range(300, 320))
    for i in range(30):  # it takes some such answers to learn that clauses follow each other
        provider.start("r", [1, 2, 3])
        shift = 1000 * i
        one, two = [t + shift for t in first], [t + shift for t in second]
        provider.attach("r", [near("a", one, clause=1), near("b", two, clause=2)])
        drafts = replay(provider, "r", one + two)
        provider.finish("r")
    crossing = [d for d in drafts if one[-1] in d and two[0] in d]
    assert crossing


def test_an_answer_of_the_corpus_is_found_by_its_words() -> None:
    provider = new_provider()
    for i, tokens in enumerate(answers_of(30, 150)):
        provider.add_answer(str(i), tokens)
    target = answers_of(31, 150)[30]
    provider.start("r", [1, 2, 3])
    replay(provider, "r", target)
    stats = provider.finish("r")
    assert stats is not None
    assert stats.by_source["corpus"].accepted > 50
    for i in range(30):
        provider.remove_answer(str(i))
    assert provider.stats().cached_tokens == 0
    provider.start("r", [1, 2, 3])
    replay(provider, "r", answers_of(31, 150)[30])
    stats = provider.finish("r")
    assert stats is not None
    assert stats.by_source["corpus"].drafted == 0


def test_late_near_answers_are_used_from_then_on() -> None:
    provider = new_provider()
    answer = list(range(500, 560))
    provider.start("r", [1, 2, 3])
    provider.observe("r", answer[:10])
    assert provider.propose("r", limit=8) == []
    provider.attach("r", [near("a", answer, 0.98)])
    provider.observe("r", answer[10:12])
    draft = provider.propose("r", limit=8)
    assert draft
    assert draft == answer[12 : 12 + len(draft)]


def test_limits_and_opt_out() -> None:
    provider = new_provider()
    answer = list(range(100, 130))
    for request_id, cap in (("off", 0), ("two", 2), ("free", None)):
        provider.start(request_id, [1, 2, 3], max_draft=cap)
        provider.attach(request_id, [near("a", answer, 0.98)])
    ids = ["off", "two", "free", "unknown"]
    drafts = provider.step(ids, [[100]] * 4)
    assert [len(draft) > 0 for draft in drafts] == [False, True, True, False]
    assert len(drafts[1]) <= 2
    limited = provider.step(ids, [[101]] * 4, limits=lambda: [5, 5, 1, 5])
    assert len(limited[2]) <= 1
    off = provider.finish("off")
    assert off is not None
    assert (off.steps, off.emitted, off.drafted) == (1, 2, 0)


def test_restarting_a_live_id_replaces_it() -> None:
    provider = new_provider()
    provider.start("r", [1, 2, 3])
    provider.observe("r", [4, 5])
    provider.start("r", [7])
    provider.observe("r", [8])
    stats = provider.finish("r")
    assert stats is not None
    assert stats.emitted == 1
    assert provider.stats().emitted == 3


def test_steps_that_rest_are_caught_up_with() -> None:
    answer = answers_of(1, 90)[0]
    drafts = []
    for baselines in (False, True):
        provider = new_provider()
        provider.start("r", [1, 2, 3])
        provider.attach("r", [near("a", answer, 0.95)])
        first = provider.step(["r"], [answer[:1]])[0]
        assert len(first) > 3
        # The draft is accepted, and then the model says something else for three steps.
        emitted = [[*first, 9], [8], [7], [6]]
        assert first == answer[1 : 1 + len(first)]
        if baselines:
            emitted = [[token for step in emitted for token in step]]
        for step in emitted:
            provider.step(["r"], [step], limits=lambda: [0])
        at = 1 + len(first)
        drafts.append(provider.step(["r"], [answer[at : at + 4]])[0])
        stats = provider.finish("r")
        assert stats is not None
        assert stats.steps == 8  # four tokens without a draft are four steps
        assert stats.emitted == 1 + len(first) + 4 + 4
        assert stats.accepted == len(first)
    assert drafts[0] == drafts[1]


def test_what_is_drafted_while_an_engine_runs_ahead_is_never_verified() -> None:
    provider = new_provider()
    answer = list(range(100, 130))
    provider.start("r", [1, 2, 3])
    provider.attach("r", [near("a", answer)])
    for token in answer[:4]:
        assert len(provider.step(["r"], [[token]], mode=SchedulingMode.IN_FLIGHT)[0]) > 3
    verified = provider.step(["r"], [answer[4:5]], mode=SchedulingMode.DRAINED)[0]
    provider.step(["r"], [answer[5 : 6 + len(verified)]], mode=SchedulingMode.DRAINED)
    stats = provider.finish("r")
    assert stats is not None
    assert stats.accepted == len(verified) > 3
    assert stats.drafted < 2 * len(verified) + 16  # of two steps, and not of six
    assert stats.steps == 5


def test_a_loaded_worker_rests_without_looking_at_what_was_emitted() -> None:
    provider = new_provider(verify_cost=5.0)
    provider.start("r", [1, 2, 3])
    assert provider.step(["r"], [[4]]) == [[]]
    assert provider.skip_drafting(1)
    assert provider.step(["r"], [[5, 6]]) == [[]]
    stats = provider.finish("r")
    assert stats is not None
    assert (stats.steps, stats.emitted) == (2, 3)
    assert not new_provider(verify_cost=0.02).skip_drafting(1)
    assert provider.stats().errors == 0


def test_drafts_for_a_few_requests_have_to_pay_for_all_of_the_step() -> None:
    """Any draft costs three tenths of a step, which is what four requests of four save at once."""
    answer, drafted = list(range(100, 130)), []
    for others in (0, 60):
        provider = new_provider(verify_cost=None)
        ids = [str(i) for i in range(4 + others)]
        for step in range(200):
            tokens = 8 * (step % 2)
            provider._length.costs.observe_step(len(ids), tokens, 0.013 if tokens else 0.010)
        for i in ids:
            provider.start(i, [1, 2, 3], max_draft=None if int(i) < 4 else 0)
            provider.attach(i, [near("a", answer, 0.98)])
        drafts = provider.step(ids, [[100]] * len(ids))
        drafted.append(sum(map(len, drafts)))
        assert provider.stats().errors == 0
    assert drafted[0] > 4
    assert drafted[1] == 0
