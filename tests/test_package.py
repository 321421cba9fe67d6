"""What is installed: every sub-package, what it reads at run time, and nothing else."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("engine_ext", "kernels", "retrieval", "spec")
"""What is installed below `reprise`; `eval` and `tests` are not."""
DATA = {
    "reprise/py.typed",
    "reprise/spec/predictor/start_weights.npz",
    *(
        f"reprise/engine_ext/answer_page/{name}"
        for name in ("answers.css", "answers.js", "page.css")
    ),
}


def packages() -> set[str]:
    """The package and its sub-packages, by the folders that hold modules."""
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    names = {".".join(("reprise", *folder.relative_to(ROOT).parts)) for folder in folders}
    return {"reprise", *names}


def modules() -> Iterator[Path]:
    for room in ROOMS:
        yield from (ROOT / room).rglob("*.py")


def test_every_folder_is_a_package_of_the_list() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["setuptools"]["packages"]) == packages()


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    # Built from a copy: setuptools leaves folders behind, and takes up what it has left before.
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__")
    shutil.copytree(ROOT, source, ignore=left_out)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {"__init__.py", *(str(path.relative_to(ROOT)) for path in modules())}
    assert files == DATA | {f"reprise/{name}" for name in sources}
