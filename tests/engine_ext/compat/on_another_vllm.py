"""Run what needs no compiled code over the Python of another vLLM than the installed one.

    python tests/engine_ext/compat/on_another_vllm.py 0.33.0 [FOLDER]

Its wheel (some 340 MB) is downloaded and its Python files (60 MB) unpacked into FOLDER, by default
a temporary one; where FOLDER/vllm exists already, it is used as it is. Nothing is installed: the
files come first in PYTHONPATH, and vLLM does without its compiled modules. That shows whether
classes, parameters and fields are as Reprise expects, and whether patches can be applied; it runs
no model.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
TESTS = (
    "tests/engine_ext/compat/test_registry.py",
    "tests/engine_ext/compat/test_step_patches.py",
    "tests/engine_ext/request/test_exact_key.py",
    "tests/engine_ext/request/test_exact_hits.py",
    "tests/engine_ext/scheduling/test_draft_lengths.py",
    "tests/engine_ext/scheduling/test_draft_slots.py",
    "tests/engine_ext/scheduling/test_graph_lengths.py",
    "tests/engine_ext/test_plugin.py",
)


def fetch(version: str, folder: Path) -> None:
    """Download the wheel of a version and unpack its Python files and metadata."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted = [f"vllm=={version}", "--no-deps", "--only-binary=:all:", "--dest", scratch]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *wanted], check=True)
        (wheel,) = Path(scratch).glob("vllm-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            archive.extractall(
                folder, [name for name in names if name.endswith(".py") or ".dist-info/" in name]
            )


def run_tests(folder: Path) -> int:
    """Run the tests over the unpacked files; return pytest's exit status."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not engine"]
    report = (
        "import vllm; from reprise.engine_ext.compat.registry import registry\n"
        "print('vLLM', vllm.__version__, 'from', vllm.__file__)\n"
        "for status in registry.report(check=True): print(status)"
    )
    environment = os.environ | {"PYTHONPATH": path, "VLLM_PLUGINS": ""}
    subprocess.run([sys.executable, "-c", report], env=environment, check=True)
    command = [sys.executable, "-m", "pytest", *options, *TESTS]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


def main() -> None:
    """Arguments: the version, and a folder to unpack into."""
    version, *others = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(others[0] if others else scratch)
        if not (folder / "vllm").is_dir():
            fetch(version, folder)
        sys.exit(run_tests(folder))


if __name__ == "__main__":
    main()
