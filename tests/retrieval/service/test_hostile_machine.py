"""Machines as they are: long paths, full and read-only disks, clocks that are set."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from reprise.engine_ext.cli.doctor import check_socket, check_store
from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.host import owned_folder, steady_clock
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.query.turns import MAX_PROMPT_TOKENS, prompt_tail
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.retrieval.service.retrieval_client import RetrievalClient
from reprise.retrieval.service.wire import Submit
from reprise.retrieval.tiers.memory_tier import MemoryTier
from reprise.retrieval.tiers.sqlite_tier import SqliteTier

CONFIG = RetrievalConfig(embedding_model="lexical", clauses=False)
HOUR_S = 3600.0


def answer(number, *, size=5, created_s=None):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=np.random.default_rng(number).integers(0, 2**31, size),
        prompt_text=f"question number {number}",
        answer_id=f"id{number}",
        created_s=created_s,
    )


@pytest.fixture
def temporary_folder(monkeypatch):
    """A function that has TMPDIR point somewhere."""

    def point(folder):
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)

    yield point
    monkeypatch.undo()


@pytest.fixture
def small_disk(tmp_path):
    """A function from a size to the folder of a disk of its own."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(folder):
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def lines(caplog):
    """What was logged, but for what other tests' threads may say."""
    return [r.getMessage() for r in caplog.records if r.levelname != "DEBUG"]


def test_a_long_temporary_folder(tmp_path, temporary_folder, wait_until):
    folder = tmp_path / ("long" * 30) / ("longer" * 20)
    folder.mkdir(parents=True)
    temporary_folder(folder)
    retriever = ProcessRetriever(CONFIG)
    client = RetrievalClient(retriever.address)
    try:
        assert len(retriever.address) > 250
        wait_until(lambda: retriever.health().state == client.health().state == "ready")
        client.store(answer(1))
        assert client.flush(60)
        wait_until(lambda: retriever.stats().answers == 1)
        assert retriever.restarts == 0
    finally:
        client.close()
        retriever.close()
    assert [finding.problem for finding in check_socket()] == [None]
    assert list(folder.iterdir()) == []


def test_no_room_for_temporary_files(small_disk, temporary_folder, monkeypatch, wait_until):
    """The socket is made in memory instead; the doctor says what is the matter."""
    disk = small_disk("64k")
    fill_up(disk)
    temporary_folder(disk)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(disk)])
    retriever = ProcessRetriever(CONFIG)
    try:
        wait_until(lambda: retriever.health().state == "ready")
        retriever.store(answer(1))
        assert retriever.flush(60)
    finally:
        retriever.close()
    monkeypatch.setattr(owned_folder, "_bases", lambda: [disk / "nowhere"])
    [finding] = check_socket()
    assert "no folder for a socket can be made" in finding.problem


def test_the_temporary_folder_is_cleaned_up_meanwhile(wait_until):
    """As some systems do with what has lain there for ten days."""
    retriever = ProcessRetriever(CONFIG)
    try:
        wait_until(lambda: retriever.health().state == "ready")
        shutil.rmtree(Path(retriever.address).parent)
        os.kill(retriever.pid, 9)
        wait_until(lambda: retriever.restarts == 1)
        wait_until(lambda: retriever.health().state == "ready")
    finally:
        retriever.close()


def test_a_full_disk_costs_what_is_stored_and_says_so_once(small_disk, wait_until, caplog):
    disk = small_disk("1m")
    config = CONFIG.model_copy(update={"url": f"sqlite:///{disk}/answers.sqlite"})
    retriever = LocalRetriever(config, embedder=Embedder("lexical"))
    try:
        assert retriever.wait_until_warm(60)
        number = 0
        while retriever.health().state != "degraded":
            number += 1
            retriever.store(answer(number, size=5000))
            time.sleep(0.005)
        assert "sqlite: cannot write" in retriever.health().detail
        retriever.store(answer(10_001))
        assert retriever.answer("", "id10001") is not None
        time.sleep(1.5)  # it is tried again, and fails again
        [line] = lines(caplog)
        assert line.startswith("Writing to sqlite fails, going on without it: ")
        assert "full" in line
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        wait_until(lambda: retriever.health().state == "ready")
        assert retriever.flush(60)
        assert retriever.stats().unwritten == 0
        tier = SqliteTier(disk / "answers.sqlite")
        assert "id10001" in tier.answer_ids("")
        tier.close()
    finally:
        retriever.close()


@pytest.mark.parametrize("damage", ["read-only", "no database", "full", "absent folder"])
def test_a_file_that_cannot_be_opened_is_tried_again(
    damage, small_disk, wait_until, caplog, monkeypatch
):
    disk = small_disk("1m")
    path = disk / "answers.sqlite"
    if damage == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    elif damage == "no database":
        path.write_bytes(b"no database at all " * 1000)
    elif damage == "full":
        fill_up(disk)
    else:
        path = disk / "later" / "answers.sqlite"
    url = f"sqlite:///{path}"
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", url)
    if damage != "absent folder":
        assert damage == "full" or [f.problem for f in check_store()] != [None]
    retriever = LocalRetriever(CONFIG.model_copy(update={"url": url}), embedder=Embedder("lexical"))
    try:
        retriever.store(answer(1))
        wait_until(lambda: "cannot read" in retriever.health().detail)
        retriever.submit("r", namespace="", text="question number 1")
        wait_until(lambda: retriever.poll("r"))
        time.sleep(1.0)
        # Nothing is written before it is known what others removed: only reading is tried.
        starts = [line.partition(":")[0] for line in lines(caplog)]
        assert starts == ["Reading from sqlite fails, going on without it"]
        if damage == "read-only":
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        elif damage == "no database":
            path.unlink()
        elif damage == "full":
            (disk / "filler").unlink()
        else:
            path.parent.mkdir()
        wait_until(lambda: retriever.health().state == "ready")
        assert retriever.flush(60)
        assert retriever.stats().unwritten == 0
        assert path.stat().st_size
    finally:
        retriever.close()


def test_a_snapshot_that_cannot_be_written_is_said_once(tmp_path, caplog):
    from reprise.retrieval.search.answer_index import AnswerIndex
    from reprise.retrieval.search.snapshot_writer import SnapshotWriter

    path = tmp_path / "absent" / "answers.index"
    writer = SnapshotWriter(path, identity="x")
    index = AnswerIndex(4, exact_search_limit=300)
    for _ in range(3):
        writer.write(index, wait=True)
    assert len(lines(caplog)) == 1
    path.parent.mkdir()
    writer.write(index, wait=True)
    assert path.exists()
    path.parent.chmod(0o700)
    shutil.rmtree(path.parent)
    writer.write(index, wait=True)
    assert len(lines(caplog)) == 2


SHORT_OF_SHARED_MEMORY = """
import logging, sys, time
logging.basicConfig(level=logging.WARNING)
from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.service.process_retriever import ProcessRetriever
r = ProcessRetriever(RetrievalConfig(embedding_model="lexical", clauses=False))
until_s = time.monotonic() + 100
while r.health().state != "ready" and r.restarts < 2 and time.monotonic() < until_s:
    time.sleep(0.02)
if r.health().state == "ready":
    for n in range(300):
        r.store(Answer.create(prompt_token_ids=[n], response_token_ids=[n] * 2000,
                              prompt_text=f"question number {n}", answer_id=f"id{n}"))
    assert r.flush(60)
    for n in range(200):
        r.submit(f"r{n}", namespace="", text=f"question number {n}")
        while r.poll(f"r{n}") is None and time.monotonic() < until_s:
            time.sleep(0.001)
    print("found", len(r.poll("r199")), "restarts", r.restarts)
r.close()
"""


@pytest.mark.parametrize(("size", "found"), [("5m", True), ("600k", False)])
def test_shared_memory_that_is_short(size, found):
    """With too little of it for what is configured, a process that touches a page that is not to
    be had is ended by a signal."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} -c '$0'"
    command = ["unshare", "-m", "sh", "-c", mount.replace("'$0'", '"$0"'), SHORT_OF_SHARED_MEMORY]
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount shared memory of its own")
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    if found:
        assert done.stdout.startswith("found 3"), done
        assert done.stdout.endswith("restarts 0\n")
        assert [line for line in said if "Shared memory is short: near answers share 2 MiB" in line]
    else:
        assert done.stdout == ""
        assert len([line for line in said if "Retrieval cannot start" in line]) == 1
        assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(said) <= 2, said


@pytest.fixture
def set_clock(monkeypatch):
    """A function that sets the machine's clock so many seconds ahead."""
    real = time.time

    def jump(seconds):
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return jump


@pytest.fixture(params=["memory", "sqlite"])
def make_tier(request, tmp_path):
    opened = []

    def make():
        if request.param == "memory":
            opened.append(MemoryTier(max_bytes=1 << 24, ttl_s=HOUR_S))
        else:
            opened.append(SqliteTier(tmp_path / "answers.sqlite", ttl_s=HOUR_S))
        return opened[-1]

    yield make
    for tier in opened:
        tier.close()


@pytest.mark.parametrize("jump_s", [-30 * 86_400.0, 30 * 86_400.0])
def test_a_clock_that_jumps_neither_drops_nor_keeps_answers(
    make_tier, set_clock, advance_clock, jump_s
):
    tier = make_tier()
    tier.put([answer(1)])
    set_clock(jump_s)
    tier.put([answer(2)])
    assert {a.answer_id for a in tier.answers("")} == {"id1", "id2"}
    if isinstance(tier, MemoryTier):
        assert tier.expired() == []
    # An hour of real time later both are gone.
    advance_clock(HOUR_S + 1.0)
    assert list(tier.answers("")) == []


def test_an_answer_of_the_future_expires_like_others(make_tier, advance_clock):
    """Written by a machine, or before a restart, whose clock was ahead."""
    tier = make_tier()
    tier.put([answer(1, created_s=steady_clock.now_s() + 30 * 86_400.0)])
    again = make_tier()  # a restart, for the file
    again.put([answer(2)])
    assert "id1" in {a.answer_id for each in (tier, again) for a in each.answers("")}
    advance_clock(HOUR_S + 1.0)
    assert list(tier.answers("")) == list(again.answers("")) == []


def test_the_steady_clock_is_the_time_of_day():
    before_s = time.time()
    now_s = steady_clock.now_s()
    assert before_s - 5.0 < now_s < time.time() + 5.0
    time.sleep(0.01)
    assert now_s + 0.009 < steady_clock.now_s() < time.time() + 5.0


def test_nothing_ages_by_a_clock_that_may_jump():
    """Nobody else asks `time.time`."""
    folder = Path(steady_clock.__file__).parents[1]
    users = {path.name for path in folder.rglob("*.py") if "time.time()" in path.read_text()}
    assert users == {"steady_clock.py"}


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_only_the_end_of_a_long_prompt_is_converted(kind, monkeypatch):
    ids = kind(range(131_072))
    assert prompt_tail(ids).tolist() == list(range(131_072 - MAX_PROMPT_TOKENS, 131_072))
    assert prompt_tail([1, 2]).tolist() == [1, 2]
    assert prompt_tail([]).tolist() == []
    sent = []
    monkeypatch.setattr(RetrievalClient, "_send", lambda _, message: sent.append(message))
    client = RetrievalClient("/nowhere")
    client.submit("r", namespace="", prompt_token_ids=ids)
    client.submit("s", namespace="", text="x" * 1_000_000)
    client.close()
    assert sent[0] == Submit("r", "", None, prompt_tail(ids).astype("<i4").tobytes())
    assert len(sent[1].text) == 1001


def test_a_long_prompt_costs_what_its_end_costs(monkeypatch):
    monkeypatch.setattr(RetrievalClient, "_send", lambda *_: True)
    client = RetrievalClient("/nowhere")

    def took_s(ids):
        best_s = float("inf")
        for _ in range(15):
            began_s = time.thread_time()
            client.submit("r", namespace="", prompt_token_ids=ids)
            best_s = min(best_s, time.thread_time() - began_s)
        return best_s

    # Converted whole it would be 8 times as long.
    assert took_s(list(range(131_072))) < 3 * took_s(list(range(MAX_PROMPT_TOKENS)))
    client.close()


def test_a_file_of_a_newer_schema_is_left_alone_with_a_line(tmp_path, wait_until, caplog):
    import sqlite3

    path = tmp_path / "answers.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        columns = "namespace, answer_id, exact_key, created_s, record, flavour"
        db.execute(f"create table answers ({columns}, primary key (namespace, answer_id))")
        db.execute("insert into answers values ('', 'id7', null, 1, 'text, not bytes', 'sweet')")
        db.commit()
    config = CONFIG.model_copy(update={"url": f"sqlite:///{path}", "poll_s": 0.02})
    retriever = LocalRetriever(config, embedder=Embedder("lexical"))
    try:
        retriever.store(answer(1))
        wait_until(lambda: "cannot read" in retriever.health().detail)
        assert retriever.answer("", "id1") is not None
        time.sleep(1.0)
        found = sorted(lines(caplog))
        assert all("a newer version's: unknown columns ['flavour']" in line for line in found)
        assert 1 <= len(found) <= 2
    finally:
        retriever.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("select count(*), max(flavour) from answers").fetchone() == (1, "sweet")
