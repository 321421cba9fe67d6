"""Whatever holds prompts, answers or weights is for its owner alone, whatever the umask."""

import fcntl
import os
import stat
from pathlib import Path

import pytest

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.host.owner_lock import owner_prefix
from reprise.retrieval.host.private_files import (
    check_ours,
    claim_file,
    claim_folder,
    open_new,
    remove_stale_parts,
    replacing,
)
from reprise.retrieval.search.index_snapshot import SnapshotError, read_snapshot
from reprise.retrieval.service import process_retriever
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.tier import TierError
from reprise.spec.predictor.weights import load_weights, save_weights, start_weights


@pytest.fixture(autouse=True)
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def answer(number):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number],
        prompt_text=f"question number {number}",
        answer_id=f"id{number}",
    )


def modes(*roots):
    """Path -> mode of everything at and under some paths; what goes away meanwhile left out."""
    found = {}
    for path in [p for root in roots for p in (root, *root.rglob("*"))]:
        try:
            found[path] = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
def test_all_that_a_running_system_creates_is_private(scheme, tmp_path, wait_until, monkeypatch):
    monkeypatch.setattr(process_retriever, "_END_S", 60.0)  # it has yet to write its index
    data = tmp_path / "data"
    data.mkdir(0o700)
    url = "memory://" if scheme == "memory" else f"sqlite:///{data}/answers.sqlite"
    retriever = ProcessRetriever(RetrievalConfig(url=url, embedding_model="lexical", clauses=False))
    try:
        wait_until(lambda: retriever.health().state == "ready")
        retriever.store(answer(1))
        assert retriever.flush(60)
        save_weights(start_weights(), data / "answers.weights")
        folder = Path(retriever.address).parent
        blocks = list(Path("/dev/shm").glob(owner_prefix(os.getpid()) + "*"))
        found = modes(folder, data, *blocks)
    finally:
        retriever.close()
    found |= modes(data)  # the index's snapshot is written at the end
    kinds = {path.name.partition("answers.sqlite")[2] for path in found if path.is_absolute()}
    if scheme == "sqlite":
        assert {"-wal", "-shm", ".index"} <= kinds
        assert data / "answers.weights" in found
    else:
        assert folder / "answers.sqlite-wal" in found
    assert folder / "socket" in found
    assert blocks
    too_open = {
        str(path): oct(mode)
        for path, mode in found.items()
        if mode not in ((0o700,) if path in (folder, data) else (0o600,))
    }
    assert too_open == {}


def test_files_of_before_are_closed_to_others(tmp_path):
    path = tmp_path / "answers.sqlite"
    tier = SqliteTier(path)
    tier.put([answer(1)])
    for each in (path, *tmp_path.glob("answers.sqlite-*")):
        each.chmod(0o666)
    other = SqliteTier(path)
    assert other.namespaces() == [""]
    other.close()
    assert [a.answer_id for a in tier.answers("")] == ["id1"]
    tier.close()
    assert set(modes(path).values()) == {0o600}


def test_a_link_where_others_may_write_is_refused(tmp_path):
    open_to_all = tmp_path / "tmp"
    open_to_all.mkdir()
    open_to_all.chmod(0o1777)
    target = tmp_path / "target"
    target.write_bytes(b"important")
    link = open_to_all / "answers.sqlite"
    link.symlink_to(target)
    for refuses in (check_ours, claim_file):
        with pytest.raises(PermissionError, match="a link in a folder that others may write to"):
            refuses(link)
    with pytest.raises(TierError, match=r"answers.sqlite: is a link in a folder that others"):
        SqliteTier(link).namespaces()
    with pytest.raises(PermissionError):
        read_snapshot(link, identity="", dim=1)
    with open_new(link) as file:  # in its place, not through it
        file.write(b"new")
    assert target.read_bytes() == b"important"
    assert not link.is_symlink()


def test_a_link_in_a_folder_of_ones_own_is_fine(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "answers.sqlite")
    tier = SqliteTier(tmp_path / "link")
    assert tier.namespaces() == []
    tier.close()
    assert (tmp_path / "answers.sqlite").is_file()
    with pytest.raises(SnapshotError):
        read_snapshot(tmp_path / "link", identity="", dim=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_what_somebody_else_has_put_there_is_refused(tmp_path):
    tmp_path.chmod(0o1777)
    theirs = tmp_path / "theirs"
    theirs.touch()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(PermissionError, match="another user's file"):
        claim_file(theirs)
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(PermissionError, match="not this user's own folder"):
        claim_folder(folder)


def test_folders_are_made_or_closed_to_others(tmp_path):
    claim_folder(tmp_path / "new")
    (tmp_path / "old").mkdir(0o755)
    claim_folder(tmp_path / "old")
    assert set(modes(tmp_path / "new", tmp_path / "old").values()) == {0o700}
    (tmp_path / "link").symlink_to(tmp_path / "old")
    with pytest.raises(PermissionError):
        claim_folder(tmp_path / "link")


def test_weights_are_written_in_place_of_a_link(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"important")
    (tmp_path / "w").symlink_to(target)
    save_weights(start_weights(), tmp_path / "w")
    assert target.read_bytes() == b"important"
    assert load_weights(start_weights(), tmp_path / "w") == b""


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "counts.npy"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_half()
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        assert modes(tmp_path)[next(tmp_path.glob("*.part"))] == 0o600
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["counts.npy"]


def test_what_is_being_written_is_no_stale_part(tmp_path):
    path = tmp_path / "index"
    (tmp_path / "other.1.part").write_bytes(b"of something else")
    (tmp_path / "index.999999999.part").write_bytes(b"half")
    with replacing(path) as file:
        file.write(b"new")
        remove_stale_parts(path)
        assert len(list(tmp_path.glob("index.*.part"))) == 1
    assert path.read_bytes() == b"new"
    assert {each.name for each in tmp_path.iterdir()} == {"index", "other.1.part"}


def test_processes_of_the_same_id_write_at_once(tmp_path, monkeypatch):
    """As in two containers that share a folder, where each of them starts afresh meanwhile."""
    monkeypatch.setattr(os, "getpid", lambda: 999_999_999)
    path = tmp_path / "index"
    with replacing(path) as one:
        one.write(b"one, ")
        remove_stale_parts(path)
        with replacing(path) as other:
            other.write(b"other")
        assert path.read_bytes() == b"other"
        one.write(b"whole")
    assert path.read_bytes() == b"one, whole"
    assert [each.name for each in tmp_path.iterdir()] == ["index"]


def test_a_part_that_is_taken_for_a_stale_one_is_begun_again(tmp_path, monkeypatch):
    path, lock, taken = tmp_path / "index", fcntl.flock, []

    def late(file, operation):
        if not taken:
            taken.append(True)
            remove_stale_parts(path)  # before it is locked
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
