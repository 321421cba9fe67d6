"""Checks of the manual what a machine can: links, paths, settings, metrics, log lines, words."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from reprise.engine_ext.core.config import CONFIG_FILE_VARIABLE, RepriseConfig
from reprise.engine_ext.frontend.exact_memory import ExactMemoryStats
from reprise.engine_ext.frontend.serving_metrics import ServingMetrics

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("spec", "retrieval", "kernels", "engine_ext", "eval")
CHANGES = "CHANGELOG.md"
"""What it names was so once."""
TROUBLESHOOTING = "docs/troubleshooting.md"
OTHERS_LINES = (
    "operator torchvision::nms does not exist",
    "No package metadata was found for",
    "CUDA out of memory",
)
"""Lines that the page of symptoms quotes from other programs."""

FORBIDDEN = {
    "a path of some machine": r"(?<![\w.])/(work|home|root|mnt|opt|Users)/|\.\./shared\b",
    "a registry's host": r"\b(pypi\.org|pythonhosted\.org|download\.pytorch\.org|docker\.io"
    r"|ghcr\.io|npmjs\.\w+|[\w.-]+\.(internal|local|corp|lan))\b",
    "a word of how it was made": r"(?i)\bsessions?\b|\bissue #?\d|\bissues? #",
}


@cache
def pages() -> dict[str, str]:
    """Every Markdown file of the repository, by its path."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    names = listed or [  # an unpacked archive
        str(path.relative_to(REPOSITORY))
        for folder in (".", "docs", *FOLDERS)
        for path in (REPOSITORY / folder).glob("*.md" if folder != "docs" else "**/*.md")
    ]
    found = {name: REPOSITORY / name for name in names}
    return {name: path.read_text(encoding="utf-8") for name, path in found.items() if path.exists()}


def manual() -> dict[str, str]:
    """The pages that say what is so now."""
    return {name: text for name, text in pages().items() if name != CHANGES}


def without_code(text: str) -> str:
    """The text without blocks and spans of code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"(?ms)^```.*?^```$", "", text))


def code_spans(text: str) -> Iterator[str]:
    """What stands between single backticks."""
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", text))


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r"(?m)^#+ +(.+?) *$", re.sub(r"(?ms)^```.*?^```$", "", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = seen[anchor] = seen.get(anchor, -1) + 1
        anchors.add(f"{anchor}-{count}" if count else anchor)
    return anchors


def broken_links(name: str, text: str) -> Iterator[str]:
    """Relative links of a page that lead nowhere."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        if not file.exists():
            yield f"{name}: {target}"
        elif anchor and anchor not in anchors_of(file.read_text(encoding="utf-8")):
            yield f"{name}: {target} (no such heading)"


def missing_paths(text: str, files: set[str]) -> set[str]:
    """Python files, and files and folders of ours in backticks, that do not exist."""
    names = set(re.findall(r"(?<![\w/.*-])(?:[\w-]+/)*[\w-]+\.py\b(?!\.)", text))
    own = "|".join((*FOLDERS, "docs", "deploy", "tests"))
    spans = {span for span in code_spans(text) if re.fullmatch(rf"(?:{own})/[\w/.-]*", span)}
    endings = {file.rsplit("/", 1)[-1] for file in files}
    gone = {n for n in names if n not in files and ("/" in n or n not in endings)}
    return gone | {span for span in spans - names if not (REPOSITORY / span).exists()}


@cache
def python_files() -> dict[str, ast.Module]:
    """The sources of the five folders, of `deploy`, the examples and the tests, parsed."""
    folders = (*FOLDERS, "deploy", "examples", "tests")
    found = [
        *REPOSITORY.glob("*.py"),
        *(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")),
    ]
    return {
        str(path.relative_to(REPOSITORY)): ast.parse(path.read_text(encoding="utf-8"))
        for path in found
    }


def unknown_settings(text: str) -> set[str]:
    """Names of settings that there are none of."""
    sections = {
        name: set(getattr(type(field.default), "model_fields", {}))
        for name, field in RepriseConfig.model_fields.items()
    }
    variables = {CONFIG_FILE_VARIABLE, "REPRISE_"} | {
        f"REPRISE_{name.upper()}" for name in sections
    }
    known = set()
    for section, settings in sections.items():
        variables |= {f"REPRISE_{section.upper()}__{name.upper()}" for name in settings}
        known |= {f"{section}.{name}" for name in settings}
    named = set(re.findall(r"\bREPRISE_[A-Z_]*", text)) - variables
    nested = "|".join(section for section, settings in sections.items() if settings)
    for span in code_spans(text):
        if match := re.match(rf"((?:{nested})\.[a-z_]+)(?:=.*)?$", span):
            named |= {match[1]} - known
    return named


class _Everything(dict[str, Any]):
    """A report with a number for whatever is asked of it."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> float:
        return 1.0

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ARG002
        return super().get(key, 1.0)


@cache
def metric_names() -> frozenset[str]:
    """All metrics, as they are named in the code, once everything has been counted."""
    metrics = ServingMetrics("test_docs")
    metrics.request("exact", 1e-4)
    metrics.refused("a reason")
    metrics.saved(1)
    metrics.stored()
    metrics.verified("whole", 1)
    metrics.near_answers("semantic")
    metrics.memory(ExactMemoryStats(answers=1, bytes=1, evicted=1, expired=1))
    metrics.shared({"hit": 1, "written": 1})
    metrics.errors("front_end", {"replay": 1})
    metrics.features("front_end", {"exact hits": "applied"})
    source = {"corpus": {"drafted": 1, "accepted": 1}}
    report = _Everything(
        provider=_Everything(by_source=source),
        propose_us=_Everything(),
        near_answers_in_time={"meaning": 1},
        errors={"propose": 1},
    )
    metrics.workers([report])
    metrics.pins([_Everything(errors={})])
    metrics.retrieval(_Everything(tier="redis", breakers={"read": "closed"}, state="ready"))
    return frozenset(
        metric.name + "_total" * (metric.type == "counter")
        for metric in REGISTRY.collect()
        if metric.name.startswith("reprise:")
    )


def metrics_named(text: str) -> set[str]:
    """Metrics that a text names; of a histogram the histogram itself."""
    return {
        re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"reprise:[a-z_]+", text)
    }


@cache
def texts_in_sources() -> str:
    """Every text in the sources, with `%s` and fields of f-strings left out of it."""
    texts = []
    for name, tree in python_files().items():
        if name.startswith("tests/"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return re.sub(r"%[-.0-9]*[a-z]", "\0", "\0".join(texts))


def quoted_log_lines(text: str) -> set[str]:
    """Log lines and errors that the page of symptoms quotes: `log: ...`, or a row's first cell in a
    table of log lines."""
    quoted: set[str] = set()
    in_table_of_lines = False
    for line in text.splitlines():
        if line.startswith("| ") and "---" not in line:
            first = line.split(" | ")[0]
            if first.startswith(("| log line", "| component, or log line")):
                in_table_of_lines = first.startswith("| log line")
            elif in_table_of_lines or "log: " in first or "expected the" in line:
                quoted |= {span for span in code_spans(line) if re.search(r"[a-z] [a-z]", span)}
        else:
            in_table_of_lines = in_table_of_lines and line.startswith("|")
    return quoted


def unlogged(line: str) -> bool:
    """Whether a quoted line stands nowhere in the sources."""
    pieces = [piece.strip() for piece in line.split("…")]
    return not all(piece in texts_in_sources() for piece in pieces if piece)


def test_relative_links_and_their_anchors_resolve() -> None:
    assert len(pages()) > 30
    broken = [link for name, text in pages().items() for link in broken_links(name, text)]
    assert broken == []


def test_every_page_is_linked_from_another() -> None:
    linked = {
        str(((REPOSITORY / name).parent / target.partition("#")[0]).resolve())
        for name, text in pages().items()
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    }
    alone = [n for n in pages() if n != "README.md" and str(REPOSITORY / n) not in linked]
    assert alone == []


def test_files_and_folders_named_exist() -> None:
    files = set(python_files())
    gone = {n: missing for n, text in manual().items() if (missing := missing_paths(text, files))}
    assert gone == {}


def test_pages_that_the_sources_name_exist() -> None:
    named = {
        (name, page)
        for name in python_files()
        if name != "tests/test_docs.py"
        for page in re.findall(
            r"\bdocs/[\w/-]+\.md\b", (REPOSITORY / name).read_text(encoding="utf-8")
        )
    }
    assert named
    assert [pair for pair in named if not (REPOSITORY / pair[1]).exists()] == []


def test_names_that_examples_import_exist() -> None:
    wrong = []
    for name, text in manual().items():
        for module, names in re.findall(r"(?m)^from reprise\.?([\w.]*) import ([\w, ]+)$", text):
            path = module.replace(".", "/")
            homes = (f"{path}.py", f"{path}/__init__.py".lstrip("/"))
            file = next((f for f in homes if f in python_files()), "")
            defined = {
                word
                for node in ast.walk(python_files().get(file, ast.Module([], [])))
                for word in (
                    [node.name]
                    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                    else [alias.asname or alias.name for alias in node.names]
                    if isinstance(node, ast.ImportFrom | ast.Import)
                    else []
                )
            }
            wrong += [f"{name}: {module}.{n}" for n in names.split(", ") if n not in defined]
    assert wrong == []


def test_make_targets_named_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z][a-z-]*):", makefile))
    named = {
        target
        for text in manual().values()
        for code in re.findall(r"(?m)(?:^|`)make ((?:[a-z-]+ ?)+)(?:`| {2}|$)", text)
        for target in code.split()
    }
    assert {"demo", "test"} <= named
    assert named <= targets


def test_settings_named_exist() -> None:
    unknown = {n: found for n, text in manual().items() if (found := unknown_settings(text))}
    assert unknown == {}


def test_metrics_named_exist() -> None:
    unknown = {n: found for n, t in manual().items() if (found := metrics_named(t) - {"reprise:"})}
    unknown = {n: found - metric_names() for n, found in unknown.items() if found - metric_names()}
    assert unknown == {}


def test_every_metric_is_explained() -> None:
    assert len(metric_names()) > 30
    explained = metrics_named(pages()["docs/metrics.md"])
    assert metric_names() - explained == set()


def test_quoted_log_lines_are_logged() -> None:
    quoted = quoted_log_lines(pages()[TROUBLESHOOTING])
    assert len(quoted) > 20
    ours = [line for line in quoted if not line.startswith(OTHERS_LINES)]
    assert [line for line in ours if unlogged(line)] == []


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_pages_speak_of_the_project_alone(kind: str) -> None:
    found = {
        name: matches
        for name, text in pages().items()
        if (matches := [match[0] for match in re.finditer(FORBIDDEN[kind], text)])
    }
    assert found == {}


def test_the_checks_can_fail() -> None:
    page = "[a](nowhere.md), [b](concepts.md#no-such), [c](concepts.md#words)"
    assert len(list(broken_links("docs/a.md", page))) == 2
    text = "`spec/none.py` and `eval/none/`, nothing.py, `spec/provider.py`, provider.py, `eval/`"
    missing = missing_paths(text, set(python_files()))
    assert missing == {"spec/none.py", "eval/none/", "nothing.py"}
    settings = "`REPRISE_RETRIEVAL__NONE`, `retrieval.none=1`, `retrieval.url`, REPRISE_NAMESPACE"
    assert unknown_settings(settings) == {"REPRISE_RETRIEVAL__NONE", "retrieval.none"}
    assert "reprise:none_total" not in metric_names()
    assert unlogged("nothing like … this is ever logged")
    assert all(
        re.search(pattern, "see /work/x, pypi.org and issue #3") for pattern in FORBIDDEN.values()
    )
