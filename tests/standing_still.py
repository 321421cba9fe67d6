"""Run tests in a process that stands still at random moments, for up to 2.5 s each time.

python tests/standing_still.py SEED [pytest's arguments]

It is what a machine does that others use as well. What a test starts goes on meanwhile, as it may
there: a test that looks too late, or assumes that nothing happens in between, fails.
"""

import random
import subprocess
import sys
import time

import psutil

from reprise.retrieval.host.process_end import leaving_on_sigterm

_PAUSES_S = (0.05, 0.3, 0.6, 1.2, 2.5)
_LONGEST_RUN_S = 0.6


def main() -> int:
    """Run pytest so, and return its exit status; 2 without a seed."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print("standing_still.py: expected SEED [pytest's arguments]", file=sys.stderr)
        return 2
    seed, *arguments = sys.argv[1:]
    with leaving_on_sigterm():
        return _run(seed, arguments)


def _run(seed: str, arguments: list[str]) -> int:
    chance = random.Random(seed)
    tests = subprocess.Popen([sys.executable, "-m", "pytest", *arguments])
    process = psutil.Process(tests.pid)
    try:
        while tests.poll() is None:
            time.sleep(chance.uniform(0.05, _LONGEST_RUN_S))
            process.suspend()
            time.sleep(chance.choice(_PAUSES_S))
            process.resume()
    except psutil.NoSuchProcess:
        pass  # it has ended meanwhile
    finally:
        if tests.poll() is None:
            process.resume()
    return tests.wait()


if __name__ == "__main__":
    sys.exit(main())
