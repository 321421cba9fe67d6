"""SIGTERM during a start ends the server and all that it has started, listening or not."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.launchers.api_server import entry

from reprise.engine_ext.checks import start_up

# As vLLM's server: a handler that interrupts, a child that does not listen, and a wait for it.
SERVER = """
import signal, subprocess, sys, time
from reprise.engine_ext.checks.start_up import end_soon_on_sigterm

CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"

def run_server():
    def _interrupt_init(*_):
        raise KeyboardInterrupt("terminated")

    signal.signal(signal.SIGTERM, _interrupt_init)
    end_soon_on_sigterm()
    child = subprocess.Popen([sys.executable, "-c", CHILD + "; time.sleep(600)"])
    try:
        time.sleep(600)
    finally:
        child.wait()

run_server()
"""


def test_vllms_handler_has_the_name_that_is_looked_for() -> None:
    nested = [code for code in entry.run_server.__code__.co_consts if hasattr(code, "co_name")]
    names = {f"run_server.<locals>.{code.co_name}" for code in nested}
    assert start_up._VLLMS_HANDLER in names


@pytest.mark.slow
def test_nothing_is_left_even_of_what_does_not_listen() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"1\n"  # the child has begun not to listen
        (child,) = psutil.Process(server.pid).children()
        began_s = time.monotonic()
        server.send_signal(signal.SIGTERM)
        # Interrupted, once nothing holds it up any more; or ended, if it takes its time.
        assert server.wait(100) in (-signal.SIGINT, 128 + signal.SIGTERM)
        assert time.monotonic() - began_s < 60  # 4 s on a machine with nothing else to do
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    finally:
        server.kill()
        server.wait()
        server.stdout.close()  # type: ignore[union-attr]


def test_a_handler_of_others_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = []
    monkeypatch.setattr(
        start_up.signal, "getsignal", lambda _number: test_a_handler_of_others_stays
    )
    monkeypatch.setattr(start_up.signal, "signal", lambda *given: installed.append(given))
    start_up.end_soon_on_sigterm()
    assert installed == []
