"""What was forgotten is no exact hit again, and no store holds it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from reprise.retrieval.api.answer import Answer, exact_id
from reprise.retrieval.api.invalidation import Invalidation
from reprise.tests.engine_ext.frontend.shared_exact.replica import MakeReplica

SECRET = [30011, 30012, 30013, 30014, 30015]


def test_what_was_forgotten_does_not_come_back_by_the_tier(
    url: str, make_replica: MakeReplica
) -> None:
    """Also if the tier still holds it, because somebody else has yet to remove it there."""
    one, two = make_replica(url), make_replica(url)
    one.ask()
    two.front_end.exact.is_forgotten = lambda answer: answer.namespace == "acme"
    assert two.ask(emits=(9,)) == ("miss", [9])


@pytest.fixture
def stored_bytes(
    url: str, tmp_path: Path, redis_bytes: Callable[[str], bytes]
) -> Callable[[], bytes]:
    """A function that returns all that the tier has on disk or in Redis."""

    def read() -> bytes:
        if url.startswith("redis"):
            return redis_bytes(url)
        found = []
        for path in tmp_path.iterdir():
            with contextlib.suppress(FileNotFoundError):  # what is written under another name first
                found += [path.read_bytes()] if path.is_file() else []
        return b"".join(found)

    return read


@pytest.mark.parametrize(
    "condition",
    [{"namespace": "acme"}, {"tenant": "acme"}, {"older_than_s": 0.0}, {"everything": True},
     {"prompt": " ".join(f"word{token_id}" for token_id in SECRET)}],
)  # fmt: skip
def test_no_store_holds_what_was_forgotten(
    url: str,
    make_replica: MakeReplica,
    stored_bytes: Callable[[], bytes],
    condition: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reprise.retrieval.tiers.record._COMPRESS_FROM_BYTES", 1 << 30)
    replica = make_replica(url)
    replica.ask(prompt=tuple(SECRET), emits=tuple(SECRET))
    needles = [b"word30012 word30013", b"".join(i.to_bytes(2, "little") for i in SECRET)]
    assert all(needle in stored_bytes() for needle in needles)
    assert exact_id(b"").encode() in stored_bytes()
    outcome = replica.retriever.forget(Invalidation.create(**condition), timeout_s=30)
    assert outcome.done
    # Kept for drafts and for exact hits, it is still one answer.
    assert len(outcome.removed) == 1
    left = stored_bytes()
    assert not [needle for needle in needles if needle in left]
    assert exact_id(b"").encode() not in left
    assert make_replica(url).ask(prompt=tuple(SECRET), emits=(9,)) == ("miss", [9])


def test_an_answer_made_before_a_removal_is_not_written_after_it(
    url: str, make_replica: MakeReplica
) -> None:
    one, two = make_replica(url), make_replica(url)
    assert one.shared is not None
    held: list[Answer] = []
    store = one.retriever.store
    one.retriever.store = held.append  # type: ignore[method-assign]
    one.ask()
    assert one.retriever.forget(Invalidation.create(namespace="acme"), timeout_s=30).done
    for answer in held:
        store(answer)
    assert one.retriever.flush(60)
    assert len(held) == 2
    assert two.ask(emits=(9,)) == ("miss", [9])
