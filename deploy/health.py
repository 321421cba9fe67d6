"""Asks a server on this machine for its health: exit status 0 if it can answer requests.

For health checks of Docker and probes of Kubernetes, which have no other way to send the admin
token from a secret. A server that is degraded answers requests all the same. Where Reprise does not
say, because its admin routes are closed or it is switched off, vLLM's own `/health` does.

    python3 health.py [URL]
"""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence

DEFAULT_URL = "http://127.0.0.1:8000/reprise/health"
TOKEN_VARIABLE = "REPRISE_SERVING__ADMIN_TOKEN"
_TIMEOUT_S = 4.0


def main(arguments: Sequence[str]) -> int:
    """Print the state; return the exit status."""
    url = arguments[0] if arguments else DEFAULT_URL
    token = os.environ.get(TOKEN_VARIABLE)
    status, said = _ask(url, {"x-reprise-admin-token": token} if token else {})
    try:
        state = json.loads(said)["state"]
    except (ValueError, KeyError, TypeError):
        print(f"{status}: {said[:200].decode(errors='replace')}" if status else said.decode())
        if not 400 <= status < 600:  # not there yet, or something else that listens
            return 1
        status, _ = _ask(urllib.parse.urljoin(url, "/health"), {})
        state = f"vLLM's own health: {status or 'no reply'}"
    print(state)
    return 0 if status == 200 else 1


def _ask(url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Return the status and the beginning of the reply; 0, and why there is none."""
    # A proxy of the environment must not come between: it would be a caller from elsewhere.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except ValueError:
        return 0, b"the URL or the token is none that can be sent"
    except Exception as error:
        return 0, str(error).encode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
