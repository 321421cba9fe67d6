"""A tier that could not be opened at first is, once it is there, that tier in all it does."""

import inspect

import pytest

from reprise.retrieval import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.tiers.late_tier import LateTier
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.tier import Tier, TierError


def answer(number):
    return Answer.create(
        prompt_token_ids=[number], response_token_ids=[number], answer_id=f"id{number}"
    )


def test_it_passes_every_call_on():
    """The defaults of `Tier` are for tiers that have nothing to do there."""
    calls = {name for name, _ in inspect.getmembers(Tier) if not name.startswith("_")}
    assert calls <= {*vars(LateTier), "name"}


def test_what_others_have_forgotten_is_heard_of(tmp_path):
    tries = []

    def open_tier():
        tries.append(1)
        if len(tries) == 1:
            raise TierError("the disk is full")
        return SqliteTier(tmp_path / "a.sqlite")

    late = LateTier("sqlite", open_tier)
    with pytest.raises(TierError, match="the disk is full"):
        late.put([answer(1)])
    late.put([answer(1), answer(2)])
    before = late.invalidations(None)
    other = SqliteTier(tmp_path / "a.sqlite")
    invalidation = Invalidation.create(answer_id="id1")
    assert other.forget(invalidation) == [("", "id1")]
    other.close()
    assert [each.answer_id for each in late.invalidations(before.position).invalidations] == ["id1"]
    assert late.answer_ids("") == ["id2"]
    late.close()
    with pytest.raises(TierError, match="sqlite is closed"):
        late.namespaces()
