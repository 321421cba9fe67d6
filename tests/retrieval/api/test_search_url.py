"""What `retrieval.search` may be, and that a password in it is not shown."""

import pytest

from reprise.retrieval import RetrievalConfig
from reprise.retrieval.api import search_url
from reprise.retrieval.api.search_url import MilvusUrl, parse_search


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    monkeypatch.setattr(search_url.importlib.util, "find_spec", lambda _: object())


def test_faiss_is_no_other_place():
    assert parse_search("faiss") is None


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("milvus://host:19531", MilvusUrl("http://host:19531")),
        ("milvus://host", MilvusUrl("http://host:19530")),
        ("milvus+tls://host:1/", MilvusUrl("https://host:1")),
        ("milvus://host:1/blue", MilvusUrl("http://host:1", database="blue")),
        ("milvus+tls://me@host/b_2", MilvusUrl("https://host:19530", "me:", "b_2")),
        ("milvus://[::1]:5", MilvusUrl("http://[::1]:5")),
        ("milvus://me:p%40ss@host:1", MilvusUrl("http://host:1", "me:p@ss")),
        ("milvus:///var/answers.db", MilvusUrl("/var/answers.db")),
        ("milvus:////var/answers.db", MilvusUrl("/var/answers.db")),
    ],
)
def test_what_is_understood(setting, expected):
    found = parse_search(setting)
    assert found == expected
    assert found.token == expected.token
    assert found.is_lite == setting.endswith(".db")


@pytest.mark.parametrize(
    "setting",
    [
        *("", "Faiss", "milvus", "milvus:", "milvus://", "redis://host:1", "milvus://host:x"),
        *("milvus://host:1/a/b", "milvus://host:1/2b", "milvus://host:1/a-b"),
        *("milvus://host:1?a=b", "milvus://host:1#x", "milvus+tls:///a.db"),
        *("milvus:///answers", "milvus:///.db", "milvus://u:secret@x@host"),
        *("milvus:/u:secret@host:1", "u:secret@host:1", "milvus:///u:secret@host:1"),
    ],
)
def test_what_is_not(setting):
    with pytest.raises(ValueError, match=r"search must be faiss|must end in \.db") as refusal:
        parse_search(setting)
    assert "secret" not in str(refusal.value)


def test_without_pymilvus_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(search_url.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"needs pymilvus: pip install 'reprise\[milvus\]'"):
        parse_search("milvus://host:1")


def test_it_needs_a_tier_and_hides_its_password():
    with pytest.raises(ValueError, match="set url to sqlite:// or redis:// too") as refusal:
        RetrievalConfig(search="milvus://me:secret@host:1")
    assert "secret" not in str(refusal.value)
    config = RetrievalConfig(search="milvus://me:secret@host:1", url="sqlite:///tmp/a.sqlite")
    assert "secret" not in repr(config)
    assert "secret" not in repr(parse_search(config.search))
