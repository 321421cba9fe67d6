"""An SQLite cache and its URL."""

import pytest

from reprise.retrieval.tiers.sqlite_tier import SqliteTier


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/answers.sqlite"


@pytest.fixture
def fill(tmp_path):
    def put(*answers):
        tier = SqliteTier(tmp_path / "answers.sqlite")
        tier.put(answers)
        tier.namespaces()  # the file is there, also without answers
        tier.close()

    return put
