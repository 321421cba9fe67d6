"""The benchmark of serving: its arithmetic, its order and its files, without a server."""

import argparse
import contextlib
import csv
from pathlib import Path
from typing import Any

import pytest

from reprise.eval.benchmarks import bench_serving
from reprise.eval.benchmarks.bench_serving import Contender, main, parse
from reprise.eval.benchmarks.serving_load import Timing, load_of
from reprise.eval.report.serving_report import append_csv, save_plots

ROWS: list[dict[str, Any]] = [
    {
        "section": "methods",
        "name": name,
        "value": value * at_once,
        "unit": "",
        "note": "",
        "method": method,
        "concurrency": at_once,
    }
    for name, value in (("tokens_per_s", 100.0), ("whole_ms_p50", 40.0))
    for method in ("none", "reprise")
    for at_once in (1, 8, 32)
]


def test_figures_of_one_run() -> None:
    timings = [Timing(0.01 * n, 0.1 * n, 10, "") for n in range(1, 6)]
    load = load_of(timings, 2.0)
    assert load.tokens_per_s == 25
    assert load.first_token_ms_p50 == pytest.approx(30)
    assert load.whole_ms_p50 == pytest.approx(300)
    assert load.whole_ms_p99 == pytest.approx(500)


def contenders_asked(
    monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]
) -> tuple[list[str], tuple[Contender, ...]]:
    """Every call of `ask_all` by the name of its server; each answers with its text."""
    asked: list[str] = []

    async def ask_all(server: Any, questions: list[str], **_how: Any) -> Any:
        asked.append(server)
        speed = {"plain": 1.0, "ours": 2.0}[server]
        timings = [Timing(0.1, 0.2, 10, texts[server]) for _ in questions]
        return timings, 10 * len(questions) / speed

    monkeypatch.setattr(bench_serving, "ask_all", ask_all)
    monkeypatch.setattr(bench_serving, "alone", lambda *_: contextlib.nullcontext())
    plain: Any = "plain"
    ours: Any = "ours"
    return asked, (Contender("plain vLLM", plain, {}), Contender("drafts off", ours, {}))


def test_every_other_round_runs_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, contenders = contenders_asked(monkeypatch, {"plain": "a", "ours": "a"})
    settings = argparse.Namespace(max_tokens=8)
    rounds = bench_serving._alternate(settings, contenders, [["q"] * 4] * 3, 8)
    assert asked == ["plain", "ours", "ours", "plain", "plain", "ours"]
    speeds = [{name: each.tokens_per_s for name, each in by.items()} for by in rounds]
    assert speeds == [{"plain vLLM": 1.0, "drafts off": 2.0}] * 3


def test_a_method_is_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    _, contenders = contenders_asked(monkeypatch, {"plain": "a", "ours": "b"})
    settings = argparse.Namespace(max_tokens=8)
    rounds = bench_serving._alternate(settings, contenders, [["q"] * 4, ["r"] * 2], 8)
    rows = bench_serving._figures_of_method(rounds, "drafts off", "plain vLLM")
    figures = {row["name"]: row["value"] for row in rows}
    assert figures["throughput / plain vLLM, median of rounds"] == 2.0
    assert figures["answers as with plain vLLM"] == 0.0
    assert figures["whole_ms_p50"] == pytest.approx(200)


def running_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def running(_model: str, *methods: str, dtype: str) -> Any:  # noqa: ARG001
        yield tuple({"none": "plain", "reprise": "ours"}[method] for method in methods)

    monkeypatch.setattr(bench_serving, "running", running)


def test_other_answers_end_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    contenders_asked(monkeypatch, {"plain": "a", "ours": "b"})
    running_servers(monkeypatch)
    settings = argparse.Namespace(
        rounds=1, max_tokens=8, model="m", dtype="auto", requests=2, concurrency=[8], warm=0
    )
    rows: list[Any] = [argparse.Namespace(prompt="q", warm=False)]
    with pytest.raises(RuntimeError, match="answers of 'drafts off' differ"):
        bench_serving.bench_miss(settings, rows)


def test_each_round_of_methods_has_questions_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, _ = contenders_asked(monkeypatch, {"plain": "a", "ours": "a"})
    running_servers(monkeypatch)
    monkeypatch.setattr(bench_serving, "_near_answers", lambda _: None)
    settings = argparse.Namespace(
        rounds=2,
        max_tokens=8,
        model="m",
        dtype="auto",
        requests=9,
        concurrency=[1, 8],
        warm=2,
        methods=["none", "reprise"],
        vllm_bench=False,
    )
    rows: list[Any] = [argparse.Namespace(prompt=str(n), warm=n < 5) for n in range(20)]
    measured = bench_serving.bench_methods(settings, rows)
    assert len(asked) == 2 + 2 * 2 * 2
    speeds = [row for row in measured if row["name"] == "tokens_per_s"]
    assert [(row["method"], row["concurrency"], row["value"]) for row in speeds] == [
        ("none", 1, 1.0),
        ("reprise", 1, 2.0),
        ("none", 8, 1.0),
        ("reprise", 8, 2.0),
    ]
    assert all(row["value"] == 100 for row in measured if row["name"] == "answers as with none")


def test_too_few_questions_are_named() -> None:
    settings = argparse.Namespace(rounds=3, concurrency=[1, 8], warm=1)
    rows: list[Any] = [argparse.Namespace(prompt=str(n), warm=n < 2) for n in range(5)]
    with pytest.raises(RuntimeError, match=r"each of 6 rounds beside the 1 that .* came 4"):
        bench_serving.bench_methods(settings, rows)


def test_the_plot_is_written_as_png_and_svg(tmp_path: Path) -> None:
    png, svg = save_plots(tmp_path / "docs" / "serving", ROWS)
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    assert "<svg" in text


def test_rows_are_appended_with_what_they_were_measured_on(tmp_path: Path) -> None:
    settings = argparse.Namespace(model="/models/demo", requests=4)
    for _ in range(2):
        append_csv(tmp_path / "a.csv", ROWS[:1], settings)
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [row["value"] for row in rows] == ["100", "100"]
    assert rows[0]["model"] == "demo"
    assert rows[0]["machine"]


@pytest.mark.parametrize("asked", [["--only", "exact,mist"], ["--methods", "none,magic"]])
def test_unknown_words_are_refused(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(asked)
    assert ended.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_a_small_setting_is_understood() -> None:
    settings = parse(["--only", "miss", "--concurrency", "1,32", "--requests", "8"])
    assert (settings.only, settings.concurrency, settings.requests) == (["miss"], [1, 32], 8)
