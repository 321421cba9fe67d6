"""`reprise cache` on an SQLite file that this user cannot write to, as a backup is mounted."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reprise.engine_ext.checks.machine_checks import check_store
from reprise.retrieval.cli import tier_access
from reprise.retrieval.host import private_files
from reprise.retrieval.tiers.sqlite_reader import SqliteReader
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.tier import TierError
from reprise.tests.retrieval.cli.cache_command import answer, refused, run

# Root may write anywhere unless it gives that up.
_AS_OTHERS = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
_PROGRAM = "from reprise.engine_ext.cli.cli import main; main()"
pytestmark = pytest.mark.skipif(
    bool(_AS_OTHERS) and shutil.which("setpriv") is None, reason="no setpriv to be less than root"
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written to, with a file of two answers."""
    made = tmp_path / "backup"
    made.mkdir()
    tier = SqliteTier(made / "a.sqlite")
    tier.put([answer(1), answer(2, namespace="")])
    tier.close()
    made.chmod(0o500)
    yield made
    made.chmod(0o700)


def ended(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*_AS_OTHERS, sys.executable, "-c", _PROGRAM, "cache", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_it_can_be_looked_at_and_exported_from(folder: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{folder}/a.sqlite"
    exported = tmp_path / "a.jsonl"
    done = ended("export", exported, "--url", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(exported.read_text().splitlines()) == 2
    done = ended("import", exported, "--url", url)
    assert done.returncode == 2
    assert done.stderr == f"reprise: {url}: {folder} cannot be written to\n"
    assert [each.name for each in folder.iterdir()] == ["a.sqlite"]


@pytest.fixture
def locked_url(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file's URL, where this process is told that it cannot write there."""
    access = os.access
    monkeypatch.setattr(
        private_files.os, "access", lambda path, mode: Path(path) != folder and access(path, mode)
    )
    monkeypatch.setattr(tier_access, "open_tier", None)  # it would write
    return f"sqlite:///{folder}/a.sqlite"


def test_commands_that_look_do_and_others_say_why_not(locked_url: str, folder: Path) -> None:
    given = ("--url", locked_url)
    assert "(default)" in run("stats", *given)
    assert "question 1" in run("list", *given, "--namespace", "acme")
    assert '"question 2"' in run("show", "id2", *given)
    assert "question 2" in run("search", "question", *given, "--embedding-model", "lexical")
    assert "2 answers readable, 0 damaged" in run("check", *given)
    for command in ("warm", "invalidate"):
        options = ["--everything"] if command == "invalidate" else []
        assert f"{folder} cannot be written to" in refused(command, *options, *given)
    assert [each.name for each in folder.iterdir()] == ["a.sqlite"]


def test_a_server_is_told_what_it_cannot_write_to(
    locked_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", locked_url)
    (finding,) = check_store()
    assert finding.problem == f"{folder} cannot be written to"


def test_what_is_written_by_others_meanwhile_is_not_mixed_up(folder: Path) -> None:
    reader = SqliteReader(folder / "a.sqlite")
    assert len(list(reader.answers("acme"))) == 1
    tier = SqliteTier(folder / "a.sqlite")
    tier.put([answer(3)])
    tier.close()
    with pytest.raises(TierError, match="was changed while it was read"):
        list(reader.answers("acme"))
    reader.close()


def test_what_a_log_still_holds_is_read_too(folder: Path) -> None:
    tier = SqliteTier(folder / "a.sqlite")
    tier.put([answer(3)])
    reader = SqliteReader(folder / "a.sqlite")
    assert {each.answer_id for each in reader.answers("acme")} == {"id1", "id3"}
    reader.close()
    tier.close()


def test_a_link_is_what_it_leads_to(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, links = os.access, tmp_path / "links"
    links.mkdir()
    link = links / "b.sqlite"
    link.symlink_to(folder / "a.sqlite")
    tier = SqliteTier(folder / "a.sqlite")
    tier.put([answer(3)])
    tier.remove("acme", ["id1"])
    reader = SqliteReader(link)
    assert {each.answer_id for each in reader.answers("acme")} == {"id3"}
    reader.close()
    tier.close()
    # Nothing is written where the link lies.
    monkeypatch.setattr(
        private_files.os, "access", lambda path, mode: Path(path) != links and access(path, mode)
    )
    folder.chmod(0o700)
    removed = run("invalidate", "--everything", "--url", f"sqlite:///{link}")
    assert "2 answers removed" in removed


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(TierError, match="an earlier version's, or none of ours"):
        SqliteReader(path)
    path.write_text("no database at all" * 100)
    with pytest.raises(TierError, match="file is not a database"):
        SqliteReader(path)
