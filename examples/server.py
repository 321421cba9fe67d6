"""Starts a server for an example, or uses one that runs already."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def server(target: str, options: Sequence[str] = (), **settings: str) -> Iterator[str]:
    """Yield the URL of a server: `target` itself if it is one, else a server of that model."""
    if target.startswith("http"):
        yield target
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("reprise")), "serve", target]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the end of this function
    process = subprocess.Popen(command, env={**os.environ, **settings})
    url = f"http://127.0.0.1:{port}"
    try:
        while _get(f"{url}/health") is None:
            if process.poll() is not None:
                sys.exit("the server did not start; its last lines say why")
            time.sleep(0.5)
        # Near answers come a little later. Servers with API keys do not show their health.
        while (_get(f"{url}/reprise/health") or {}).get("components", {}).get("retrieval", {}).get(
            "state"
        ) == "starting":
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def _get(url: str) -> dict[str, Any] | None:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
        return json.loads(reply.read() or b"{}")
    return None
