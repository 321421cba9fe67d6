"""The examples in docstrings run as they stand."""

import doctest

import pytest

from reprise.retrieval.api import retriever
from reprise.retrieval.in_process import update_queue
from reprise.retrieval.tiers import tier
from reprise.retrieval.tiers.sync import tier_sync


@pytest.mark.parametrize("module", [retriever, tier, tier_sync, update_queue])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 3
    assert found.failed == 0
