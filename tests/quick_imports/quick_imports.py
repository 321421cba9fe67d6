"""Have Python import faster, in the processes of a test run: a start of vLLM is mostly imports.

Two things take a third of that time and do nothing for it: the garbage collector looks through
hundreds of thousands of objects that all stay, and transformers reads what every installed package
consists of. So the collector runs less often, and what was read is kept in a file for the next.
"""

import contextlib
import gc
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path

FILE = "QUICK_IMPORTS_FILE"
"""The environment variable with the path of that file, which the first process writes."""
_ALLOCATIONS = 50_000  # before new objects are looked through; Python's own number: 700

_read_packages = importlib.metadata.packages_distributions


def begin() -> None:
    """Make this process import faster."""
    gc.set_threshold(_ALLOCATIONS, 20, 20)
    if FILE in os.environ:
        importlib.metadata.packages_distributions = packages_distributions


def packages_distributions() -> Mapping[str, list[str]]:
    """Return what the function of this name returns, from the file if it is there."""
    file = Path(os.environ[FILE])
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
        return known
    found = _read_packages()
    with contextlib.suppress(OSError):
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(found), encoding="utf-8")
        scratch.replace(file)
    return found
