"""Run what needs no compiled code over the Python of another vLLM than the installed one.

    python tests/engine_ext/compat/on_another_vllm.py 0.33.0 [--engines] [--folder FOLDER]

Its wheel (some 340 MB) is downloaded and its Python files (60 MB) unpacked into FOLDER, by default
a temporary one; where FOLDER/vllm exists already, it is used as it is. Nothing is installed: the
files come first in PYTHONPATH, and vLLM does without its compiled modules. That shows whether
classes, parameters and fields are as Reprise expects, and whether patches can be applied; it runs
no model.

With `--engines` the compiled modules of the installed CPU build are put beside those Python files,
and engines run: on model runner V1, and on V2 in Triton's interpreter. That is possible as long as
the other version calls the same operators; it says nothing about that version's own kernels.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
TESTS = (
    "tests/engine_ext/compat/test_registry.py",
    "tests/engine_ext/compat/test_step_patches.py",
    "tests/engine_ext/compat/test_vllm_imports.py",
    "tests/engine_ext/request/test_exact_key.py",
    "tests/engine_ext/request/test_exact_hits.py",
    "tests/engine_ext/scheduling/test_draft_lengths.py",
    "tests/engine_ext/scheduling/test_draft_slots.py",
    "tests/engine_ext/scheduling/test_graph_lengths.py",
    "tests/engine_ext/test_plugin.py",
)
ENGINE_TESTS = (
    "tests/engine_ext/test_losslessness.py",
    "tests/engine_ext/test_settings_with_drafts.py",
    "tests/engine_ext/test_async_llm.py",
    "tests/engine_ext/frontend/test_serving.py",
    "tests/engine_ext/frontend/test_verified_replay.py",
    "tests/engine_ext/outputs/test_one_token_outputs.py",
    "tests/engine_ext/kv_pins",
    "tests/engine_ext/speculator/test_v2_engines.py",
    "tests/engine_ext/speculator/test_v2_lengths.py",
    "tests/engine_ext/speculator/test_v2_pins.py",
    "tests/engine_ext/speculator/test_verified_replay_v2.py",
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


def make_cpu_build(folder: Path) -> None:
    """Put the compiled modules of the installed vLLM beside the Python files of the other one, and
    have its metadata say what that of a CPU build says: vLLM asks it for its platform."""
    spec = importlib.util.find_spec("vllm")
    assert spec, "vLLM is not installed"
    modules = list(Path(str(spec.origin)).parent.glob("*.so"))
    assert modules, "the installed vLLM has no compiled modules"
    for module in modules:
        shutil.copy(module, folder / "vllm")
    (metadata,) = folder.glob("vllm-*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    metadata.write_text(re.sub(r"(?m)^(Version: [\d.]+)$", r"\1+cpu", text, count=1), "utf-8")


def run_tests(folder: Path, *, with_engines: bool) -> int:
    """Run the tests over the unpacked files; return pytest's exit status."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    options = ["-q", "-p", "no:cacheprovider"]
    if with_engines:
        make_cpu_build(folder)
        tests = ENGINE_TESTS
    else:
        environment["VLLM_PLUGINS"] = ""
        options += ["-m", "not slow and not engine"]
        tests = TESTS
    report = (
        "import vllm; from reprise.engine_ext.compat.registry import registry\n"
        "print('vLLM', vllm.__version__, 'from', vllm.__file__)\n"
        "for status in registry.report(check=True): print(status)"
    )
    quiet = environment | {"VLLM_PLUGINS": ""}
    subprocess.run([sys.executable, "-c", report], env=quiet, check=True)
    command = [sys.executable, "-m", "pytest", *options, *tests]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


def main() -> None:
    """Fetch what is not there, and run the tests."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("version", help="of vLLM, as 0.33.0")
    parser.add_argument("--engines", action="store_true", help="run engines, not only checks")
    parser.add_argument("--folder", type=Path, help="where the Python files are, or are to be put")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        if not (folder / "vllm").is_dir():
            fetch(arguments.version, folder)
        sys.exit(run_tests(folder, with_engines=arguments.engines))


if __name__ == "__main__":
    main()
