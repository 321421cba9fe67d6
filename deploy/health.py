"""Asks a server on this machine for its health: exit status 0 if it can answer requests.

For health checks of Docker and probes of Kubernetes, which have no other way to send the admin
token from a secret. A server that is degraded answers requests all the same.

    python3 health.py [URL]
"""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

DEFAULT_URL = "http://127.0.0.1:8000/reprise/health"
TOKEN_VARIABLE = "REPRISE_SERVING__ADMIN_TOKEN"
_TIMEOUT_S = 4.0


def main(arguments: Sequence[str]) -> int:
    """Print the state; return the exit status."""
    url = arguments[0] if arguments else DEFAULT_URL
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"x-reprise-admin-token": token} if token else {}
    # A proxy of the environment must not come between: it would be a caller from elsewhere.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as reply:
            state = json.load(reply)["state"]
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read(200).decode(errors='replace')}")
        return 1
    except Exception as error:  # not there yet, or something else that listens
        print(error)
        return 1
    print(state)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
