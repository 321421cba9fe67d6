"""What the doctor finds on a machine where everything is there, and where something is not."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from reprise.engine_ext.checks.machine_checks import (
    Finding,
    check_redis,
    check_settings,
    check_shared_memory,
)
from reprise.engine_ext.cli import doctor as doctor_module
from reprise.engine_ext.cli import vllm_findings
from reprise.engine_ext.cli.doctor import CHECKS, check_embedding, doctor
from reprise.engine_ext.cli.vllm_findings import check_compat, check_plugins, check_vllm
from reprise.retrieval.host.process_end import ENDED_BY_SIGTERM
from reprise.tests.marked_processes import Mark


def run() -> tuple[int, str]:
    app = typer.Typer()
    app.command()(doctor)
    result = CliRunner().invoke(app, [])
    return result.exit_code, result.output


def problems(findings: Iterator[Finding]) -> list[str]:
    return [finding.problem for finding in findings if finding.problem is not None]


def test_nothing_is_broken_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "reprise")
    for check in (check_settings, check_vllm, check_plugins, check_compat, check_shared_memory):
        assert problems(check()) == []
    assert list(check_redis()) == []


def test_what_is_wrong_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRISE_SERVING__EXACT_HITS", "perhaps")
    assert "exact_hits" in problems(check_settings())[0]
    monkeypatch.delenv("REPRISE_SERVING__EXACT_HITS")
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert problems(check_plugins()) == ["'another' shuts Reprise out"]
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    (problem,) = problems(check_compat())
    assert "VLLM_USE_RUST_FRONTEND asks for the other one" in problem
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", "redis://127.0.0.1:1/0")
    (finding,) = check_redis()
    assert finding.problem is not None
    assert "REPRISE_RETRIEVAL__URL" in finding.detail


def test_status_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fine() -> Iterator[Finding]:
        yield Finding("one", None, "there")
        yield Finding("two", "small", "make it larger", is_fatal=False)

    def fine_too() -> Iterator[Finding]:
        yield Finding("three", None, "there too")

    def failing() -> Iterator[Finding]:
        raise RuntimeError("it fell over")

    monkeypatch.setattr(doctor_module, "PROCESSES", (fine_too,))
    monkeypatch.setattr(doctor_module, "CHECKS", (fine,))
    status, output = run()
    assert status == 0
    assert "ok       one: there" in output
    assert "warning  two: small" in output
    assert "ok       three: there too" in output
    monkeypatch.setattr(doctor_module, "CHECKS", (fine, failing))
    status, output = run()
    assert status == 1
    assert "RuntimeError: it fell over" in output


def test_one_wrong_setting_is_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", "redi://nowhere")
    checks = (*CHECKS, check_embedding, *vllm_findings.CHECKS)
    found = [finding for check in checks for finding in check() if finding.problem is not None]
    (wrong,) = [finding for finding in found if "VLLM_PLUGINS" not in finding.name]
    assert "redi://nowhere" in str(wrong)


def test_a_lacking_embedding_model_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRISE_RETRIEVAL__EMBEDDING_MODEL", "no-such-model")
    (finding,) = check_embedding()
    assert not finding.is_fatal
    assert "no-such-model" in str(finding)


PROGRAM = "from reprise.engine_ext.cli.cli import main; main()"


def test_sigterm_leaves_no_check_behind() -> None:
    mark = Mark()
    doctor = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "doctor"],
        env=mark.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + 100
        while len(mark.alive()) < 2:  # the embedding model is loaded beside it
            assert doctor.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        began_s = time.monotonic()
        doctor.send_signal(signal.SIGTERM)
        assert doctor.wait(100) == ENDED_BY_SIGTERM
        assert mark.left_after(10) == []
        assert time.monotonic() - began_s < 40  # 4 s on a machine with nothing else to do
    finally:
        mark.kill()
