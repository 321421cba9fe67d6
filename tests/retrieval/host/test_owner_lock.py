"""What owners leave behind is removed, in whatever container they ran, and nothing else is."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from reprise.retrieval.host import owned_folder
from reprise.retrieval.host.owned_folder import OwnedFolder, make_folder, remove_stale_folders
from reprise.retrieval.host.owner_lock import owner_prefix
from reprise.retrieval.host.shared_block import create_block, remove_stale_blocks

SHARED = Path("/dev/shm")
OWNER = """
import time
from reprise.retrieval.host.owned_folder import make_folder
from reprise.retrieval.host.shared_block import create_block
folder = make_folder()
(folder.path / "answers.sqlite").touch()
block = create_block(folder.path.name, 4096)
print(folder.path, block.name, flush=True)
time.sleep(600)
"""


def sweep():
    remove_stale_blocks()
    remove_stale_folders()


def leave(path, *, is_folder):
    with contextlib.suppress(FileNotFoundError):  # whoever starts beside this test sweeps too
        if is_folder:
            path.mkdir()
            (path / "answers.sqlite").touch()
        else:
            path.write_bytes(b"answers")


@pytest.fixture(autouse=True)
def bases(tmp_path, monkeypatch):
    monkeypatch.setattr(owned_folder, "_bases", lambda: [tmp_path, SHARED])


def test_what_a_killed_owner_held_is_removed_and_not_before(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as owner:
        folder, block = owner.stdout.readline().split()
        held = [Path(folder), SHARED / block]
        sweep()
        assert all(path.exists() for path in held)
        owner.kill()
    sweep()
    assert not any(path.exists() for path in held)


@pytest.mark.parametrize("base", ["temporary", "shared"])
def test_that_a_process_has_the_id_of_a_killed_one_keeps_nothing(tmp_path, base):
    """As in a container that is started anew, whose process ids begin from 1 again."""
    left = {"temporary": tmp_path, "shared": SHARED}[base] / f"{owner_prefix(os.getpid())}{0:012x}"
    for is_folder in (True, False):
        leave(left, is_folder=is_folder)
        sweep()
        assert not left.exists()


def test_what_0_1_0_left_is_removed_once_its_owner_is_gone_here(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = os.stat("/proc/self/ns/pid").st_ino
    names = {(here, gone.pid): False, (here, os.getpid()): True, (here + 1, gone.pid): True}
    for space, pid in names:
        leave(tmp_path / f"reprise-{space}-{pid}-{0:012x}", is_folder=True)
    sweep()
    for (space, pid), stays in names.items():
        assert (tmp_path / f"reprise-{space}-{pid}-{0:012x}").exists() == stays


def test_nothing_else_of_such_a_name_is_removed(tmp_path):
    others = [tmp_path / name for name in ("reprise-1-notes", "reprise-results", "reprise-1-1-x")]
    for path in others:
        path.mkdir()
    link = tmp_path / f"{owner_prefix(1)}{0:012x}"
    link.symlink_to(others[0])
    pipe = tmp_path / f"{owner_prefix(1)}{1:012x}"
    os.mkfifo(pipe)
    sweep()
    assert all(path.is_dir() for path in others)
    assert link.is_symlink()
    assert pipe.exists()


def test_a_folder_can_be_claimed_again_once_it_was_taken_away(tmp_path):
    folder = make_folder()
    assert folder.path.parent == tmp_path
    folder.path.rmdir()
    folder.claim()
    sweep()
    assert folder.path.is_dir()
    assert not OwnedFolder(tmp_path / "nowhere").share()
    folder.remove()
    assert not folder.path.exists()


def test_a_folder_that_is_claimed_again_is_held_all_the_time(monkeypatch):
    folder = make_folder()
    (folder.path / "answers.sqlite").touch()
    hold = owned_folder.hold

    def hold_after_a_sweep(*arguments):
        monkeypatch.setattr(owned_folder, "hold", hold)
        sweep()
        return hold(*arguments)

    monkeypatch.setattr(owned_folder, "hold", hold_after_a_sweep)
    folder.claim()
    assert (folder.path / "answers.sqlite").exists()
    folder.remove()


def test_whoever_sweeps_meanwhile_takes_nothing_from_who_makes_it():
    """A new folder or block is taken for an abandoned one for as long as it is not locked."""
    ending = threading.Event()

    def keep_sweeping():
        while not ending.is_set():
            sweep()

    sweeper = threading.Thread(target=keep_sweeping)
    sweeper.start()
    try:
        for _ in range(200):
            folder = make_folder()
            assert folder.path.is_dir()
            block = create_block(folder.path.name, 4096)
            assert (SHARED / block.name).exists()
            (SHARED / block.name).unlink()
            block.close()
            folder.remove()
    finally:
        ending.set()
        sweeper.join()
