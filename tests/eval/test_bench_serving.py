"""The benchmark of serving: its arithmetic, its order and its files, without a server."""

import argparse
import csv
from pathlib import Path
from typing import Any

import pytest

from reprise.eval import bench_serving
from reprise.eval.bench_serving import Contender, main, parse
from reprise.eval.serving_load import Timing, load_of
from reprise.eval.serving_report import append_csv, save_plots

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
    plain: Any = "plain"
    ours: Any = "ours"
    return asked, (Contender("plain vLLM", plain, {}), Contender("drafts off", ours, {}))


def test_every_other_round_runs_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, contenders = contenders_asked(monkeypatch, {"plain": "a", "ours": "a"})
    settings = argparse.Namespace(rounds=3, max_tokens=8)
    speeds = bench_serving._alternate(settings, contenders, ["q"] * 4, 8)
    assert asked == ["plain", "ours", "ours", "plain", "plain", "ours"]
    assert speeds == [{"plain vLLM": 1.0, "drafts off": 2.0}] * 3


def test_other_answers_end_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    _, contenders = contenders_asked(monkeypatch, {"plain": "a", "ours": "b"})
    settings = argparse.Namespace(rounds=1, max_tokens=8)
    with pytest.raises(RuntimeError, match="answers differ"):
        bench_serving._alternate(settings, contenders, ["q"], 8)


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
