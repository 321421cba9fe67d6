"""The fault campaign: it sees what is wrong, and finds nothing wrong with real servers."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from reprise.engine_ext.request.request_info import DraftCounts, RequestInfo, SourceCounts
from reprise.eval.campaigns.campaign_requests import (
    TENANTS,
    Outcome,
    Verdict,
    _crossing,
    _of_stream,
    _Told,
    long_question,
    make_questions,
)
from reprise.eval.campaigns.fault_campaign import (
    Campaign,
    Count,
    Report,
    main,
    wanted_outcomes,
)
from reprise.eval.campaigns.fault_ground import leftovers, standing
from reprise.eval.campaigns.fault_kinds import (
    DISK_FULL,
    FAULT_KINDS,
    SQLITE_FILE,
    FaultKind,
    Target,
    no_fault,
)
from reprise.eval.report.progress_log import ProgressLog
from reprise.retrieval.api.tier_url import snapshot_path

OUTCOME = Outcome("text", "stop", None, 3, 4)


def test_questions_depend_on_the_seed_alone() -> None:
    questions = make_questions(1, 60)
    assert questions == make_questions(1, 60)
    assert questions != make_questions(2, 60)
    assert len(set(questions)) == len(questions) > 40
    long = long_question(questions[0])
    assert long.is_long
    assert long.fields()["ignore_eos"]
    assert "seed" not in long.fields()


def told(cache: str, **drafted: int) -> dict[str, Any]:
    """What the product says of a request, in plain types."""
    by_source = {source: SourceCounts(number, 0) for source, number in drafted.items()}
    info = RequestInfo(cache=(cache,), drafts=DraftCounts(1, by_source), retrieval_ms=None)
    plain: dict[str, Any] = json.loads(info.as_json())
    return plain


@pytest.mark.parametrize(
    ("cache", "info", "is_crossing"),
    [
        ("miss", told("miss"), False),
        ("miss; reason=sampled", told("miss"), False),
        ("miss", told("miss", context=3), False),
        ("miss", {**told("miss"), "drafts": None}, False),
        ("exact", told("exact"), True),
        ("semantic", told("miss"), True),
        ("miss", told("clause"), True),
        ("miss", told("a kind of later"), True),
        ("miss", told("miss", near_answer=1), True),
        ("miss", told("miss", corpus=2), True),
        ("miss", told("miss", a_source_of_later=2), True),
        # A reply that does not tell may hide one.
        ("miss", {}, True),
        (None, told("miss"), True),
        ("miss", {"cache": ["miss"]}, True),
    ],
)
def test_a_crossing_is_seen(cache: str | None, info: dict[str, object], is_crossing: bool) -> None:
    assert (_crossing(_Told(cache, info)) is not None) == is_crossing


def event(choice: dict[str, object] | None, usage: dict[str, int] | None = None) -> str:
    body = {"choices": [choice] if choice else [], "usage": usage}
    return f"data: {json.dumps(body)}\n\n"


def test_a_stream_that_ends_early_is_no_reply() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    whole = (
        event({"delta": {"content": "te"}, "finish_reason": None})
        + event({"delta": {"content": "xt"}, "finish_reason": "stop", "stop_reason": None})
        + event(None, usage)
    )
    assert _of_stream(whole + "data: [DONE]\n\n") == OUTCOME
    with pytest.raises(Exception, match="ended early"):
        _of_stream(whole)
    with pytest.raises(Exception, match="an error in the stream"):
        _of_stream('data: {"error": {"message": "no"}}\n\n' + whole + "data: [DONE]\n\n")


def test_counts_add_up() -> None:
    verdicts = [
        Verdict(),
        Verdict(lost="TimeoutError"),
        Verdict(wrong=(OUTCOME, OUTCOME._replace(text="x"))),
        Verdict(crossed="exact"),
    ]
    count = Count().plus(verdicts).plus([Verdict()], is_idle=True)
    assert count == (2, 5, 1, 1, 1, 1)
    assert not Report({"one": count}, []).is_good
    good = Count().plus([Verdict()])
    assert Report({"one": good, "two": good}, []).total == (2, 2, 0, 0, 0, 0)
    assert Report({"one": good}, []).is_good
    assert not Report({"one": good}, ["process 1"]).is_good
    # No crossing was seen because no reply told of drafts.
    assert not Report({"one": good}, [], fresh=3, told=0).is_good
    assert Report({"one": good}, [], fresh=3, told=2).is_good


def test_what_is_left_is_named(tmp_path: Path) -> None:
    stays = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "reprise-1-socket").touch()
        process = psutil.Process(stays.pid)
        found = leftovers([process], tmp_path, ends_within_s=0.1)
        assert len(found) == 2
        assert str(stays.pid) in found[0]
        assert "reprise-1-socket" in found[1]
    finally:
        stays.kill()
        stays.wait()
    (tmp_path / "reprise-1-socket").unlink()
    assert leftovers([process], tmp_path, ends_within_s=5) == []


def test_a_fault_breaks_what_it_is_named_after(tmp_path: Path) -> None:
    kinds = {kind.name: kind for kind in FAULT_KINDS}
    snapshot = snapshot_path(f"sqlite://{tmp_path}/{SQLITE_FILE}", None)
    assert snapshot is not None
    files = [tmp_path / SQLITE_FILE, tmp_path / f"{SQLITE_FILE}-wal", snapshot]
    target = Target("sqlite", os.getpid(), tmp_path, None, None)

    def spoilt_by(name: str) -> tuple[bool, list[bool]]:
        for path in files:
            path.write_bytes(bytes(64))
        with kinds[name].begin(target, random.Random(1)) as has_broken:
            return has_broken, [path.read_bytes() != bytes(64) for path in files]

    assert spoilt_by("SQLite corrupted") == (True, [True, True, False])
    # There is no retrieval process that would read it again.
    assert spoilt_by("snapshot corrupted") == (False, [False, False, True])
    command = [sys.executable, "-c", "import time; time.sleep(60)", "retrieval_process"]
    retrieval = subprocess.Popen(command)
    try:
        assert spoilt_by("snapshot corrupted") == (True, [False, False, True])
        assert retrieval.wait(60) < 0
    finally:
        retrieval.kill()
        retrieval.wait()
    for path in files:
        path.unlink()
    for name in ("SQLite corrupted", "snapshot corrupted", "SQLite removed", "retrieval killed"):
        with kinds[name].begin(target, random.Random(1)) as has_broken:
            assert not has_broken, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--faults", "0"], "--faults"), (["--only", "earthquake"], "earthquake"), (["-x"], "-x")],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.redis
@pytest.mark.timeout(1800)
def test_no_reply_notices_a_fault(demo_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each kind of fault once under each server; the command draws them at random, for hours."""
    model, log = str(demo_model), ProgressLog(None)
    wanted = wanted_outcomes(model, 0)
    assert len({outcome.text for outcome in wanted.values()}) > len(wanted) / 2
    with standing(model, "lexical") as ground:
        kinds = [each for each in FAULT_KINDS if ground.can_fill_disk or each.name != DISK_FULL]
        faults = [(kind, target) for kind in kinds for target in kind.targets]
        random.Random(5).shuffle(faults)
        campaign = Campaign(ground, wanted, kinds, seed=5, log=log)
        for kind, target in faults:
            campaign.live_through(kind, target)
        report = Report(campaign.by_kind, [])
        assert campaign.told > campaign.fresh / 2
        assert report.total.idle < report.total.faults / 2
        assert report.is_good, capfd.readouterr().err
        assert report.by_kind.keys() == {kind.name for kind in kinds}
        # It can fail: another answer is wanted than is given.
        other = {each: outcome._replace(text="x") for each, outcome in wanted.items()}
        failing = Campaign(ground, other, [FaultKind("none", no_fault)], seed=1, log=log)
        failing.live_through_one()
        count = failing.by_kind["none"]
        assert count.wrong == count.requests > 0
        assert ground.stop() == []
    assert TENANTS[0] in capfd.readouterr().err
