"""The corpora of many namespaces."""

import numpy as np

from reprise.spec.config import DraftConfig
from reprise.spec.corpora import FIRST_ROWS, Corpora
from reprise.spec.provider import DraftProvider

TOKENS = np.arange(40, dtype=np.int32)


def test_an_idle_namespace_is_forgotten_and_its_row_used_again() -> None:
    corpora = Corpora(max_bytes=1 << 20)
    for number in range(20 * FIRST_ROWS):
        name = str(number)
        corpora.enter(name)
        corpora.add("a", TOKENS, name)
        corpora.leave(name)
        assert len(corpora) == 1
        corpora.remove("a", name)
        assert len(corpora) == 0
    assert len(corpora.table) == FIRST_ROWS


def test_a_namespace_with_a_request_or_an_answer_stays() -> None:
    corpora = Corpora(max_bytes=1 << 20)
    row = corpora.enter("x")
    corpora.add("a", TOKENS, "x")
    corpora.remove("a", "x")
    assert corpora.enter("x") == row
    corpora.leave("x")
    corpora.remove("unknown", "x")
    corpora.remove("unknown", "y")
    assert len(corpora) == 1
    corpora.leave("x")
    assert len(corpora) == 0


def test_more_namespaces_than_rows_draft_from_their_own() -> None:
    provider = DraftProvider(DraftConfig(verify_cost=0.0))
    for number in range(3 * FIRST_ROWS):
        provider.add_answer("a", TOKENS + 100 * number, namespace=str(number))
    for number in reversed(range(3 * FIRST_ROWS)):
        provider.start("r", [7], namespace=str(number))
        provider.observe("r", [100 * number, 100 * number + 1])
        assert provider.propose("r", limit=3)[:1] == [100 * number + 2]
        provider.finish("r")
        provider.remove_answer("a", namespace=str(number))
    assert provider.stats().answers == 0
    assert provider.stats().bytes == 0
