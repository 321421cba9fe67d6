"""A real server whose Redis is not there prints its password nowhere."""

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]
SECRET = "S3CR3T-w0rd"
_GIVEN_UP = "fails, going on without it"


def test_a_server_shows_no_password(
    demo_model: Path, server_builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"redis://127.0.0.1:1/0?username=app&password={SECRET}&cluster=1"
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", url)
    server = server_builder(demo_model, with_reprise=True)
    try:
        server.wait()
        server.wait_for_retrieval()
        # It is given up after a few failures, of which each takes its time.
        deadline_s = time.monotonic() + 300.0
        for number in itertools.count():
            assert server.chat(f"How do I return parcel {number}?").status == 200
            if _GIVEN_UP in server.log() or time.monotonic() > deadline_s:
                break
            time.sleep(0.2)
        told = [server.send(path).body for path in ("/reprise/stats", "/reprise/health")]
        told += [server.send("/metrics", key=None).body, server.log()]
    finally:
        server.stop()
    assert _GIVEN_UP in told[-1]
    assert "Traceback" not in told[-1]
    assert not [text for text in told if SECRET in text]
