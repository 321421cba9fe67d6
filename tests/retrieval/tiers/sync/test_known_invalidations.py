"""Which invalidations an answer is compared with, by when both were made."""

import pytest

from reprise.retrieval.api.invalidation import all_until
from reprise.retrieval.tiers.sync.known_invalidations import KnownInvalidations


@pytest.mark.parametrize(("made_s", "meets"), [(100.5, True), (99.5, True), (97.5, False)])
def test_clocks_of_machines_may_differ_a_little(made_s, meets):
    known = KnownInvalidations()
    invalidation = all_until(made_s)
    known.add([invalidation])
    assert list(known.made_since(100.0)) == [invalidation] * meets
