"""Which invalidations an answer is compared with, by when both were made."""

import msgspec
import pytest

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.tiers.sync.known_invalidations import KnownInvalidations


@pytest.mark.parametrize(("made_s", "meets"), [(100.5, True), (99.5, True), (97.5, False)])
def test_clocks_of_machines_may_differ_a_little(made_s, meets):
    known = KnownInvalidations()
    invalidation = Invalidation.create(everything=True)
    known.add([msgspec.structs.replace(invalidation, made_s=made_s)])
    answer = Answer.create(prompt_token_ids=[1], response_token_ids=[2], created_s=100.0)
    assert known.mean_since(100.0, answer) == meets
    assert known.any_since(100.0) == meets
