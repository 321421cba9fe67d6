"""A real server whose Redis is not there prints its password nowhere."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]
SECRET = "S3CR3T-w0rd"


def test_a_server_shows_no_password(
    demo_model: Path, server_builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"redis://127.0.0.1:1/0?username=app&password={SECRET}&cluster=1"
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", url)
    server = server_builder(demo_model, with_reprise=True)
    try:
        server.wait()
        server.wait_for_retrieval()
        for _ in range(2):
            assert server.chat("How do I return a parcel?").status == 200
        told = [server.send(path).body for path in ("/reprise/stats", "/reprise/health")]
        told += [server.send("/metrics", key=None).body, server.log()]
    finally:
        server.stop()
    assert "fails, going on without it" in told[-1]
    assert "Traceback" not in told[-1]
    assert not [text for text in told if SECRET in text]
