"""The benchmark of serving: its arithmetic, its order and its files, without a server."""

import contextlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprise.eval.benchmarks import bench_serving
from reprise.eval.benchmarks.bench_serving import Contender, Settings, main
from reprise.eval.benchmarks.serving import rounds
from reprise.eval.benchmarks.serving.load import Server, Timing, load_of
from reprise.eval.benchmarks.serving.rounds import alternate, figures_of
from reprise.eval.report import serving_report
from reprise.eval.report.results_csv import read_rows
from reprise.eval.report.serving_report import save_plots

SETTINGS = Settings(
    model="m",
    dtype="auto",
    methods=["none", "reprise"],
    concurrency=[8],
    requests=4,
    warm=0,
    max_tokens=8,
    rounds=2,
    vllm_bench=False,
)
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

    for module in (bench_serving, rounds):
        monkeypatch.setattr(module, "ask_all", ask_all)
        monkeypatch.setattr(module, "alone", lambda *_: contextlib.nullcontext())
    plain: Any = "plain"
    ours: Any = "ours"
    return asked, (Contender("plain vLLM", plain, {}), Contender("drafts off", ours, {}))


def test_every_other_round_runs_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, contenders = contenders_asked(monkeypatch, {"plain": "a", "ours": "a"})
    found = alternate(contenders, [["q"] * 4] * 3, concurrency=8, max_tokens=8)
    assert asked == ["plain", "ours", "ours", "plain", "plain", "ours"]
    speeds = [{name: each.tokens_per_s for name, each in by.items()} for by in found]
    assert speeds == [{"plain vLLM": 1.0, "drafts off": 2.0}] * 3


def test_a_method_is_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    _, contenders = contenders_asked(monkeypatch, {"plain": "a", "ours": "b"})
    found = alternate(contenders, [["q"] * 4, ["r"] * 2], concurrency=8, max_tokens=8)
    rows = figures_of("methods", found, "drafts off", "plain vLLM")
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
    settings = SETTINGS._replace(rounds=1, requests=2, concurrency=[8], warm=0)
    rows: list[Any] = [SimpleNamespace(prompt="q", warm=False)]
    with pytest.raises(RuntimeError, match="answers of 'drafts off' differ"):
        bench_serving.bench_miss(settings, rows)


def test_each_round_of_methods_has_questions_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, _ = contenders_asked(monkeypatch, {"plain": "a", "ours": "a"})
    running_servers(monkeypatch)
    monkeypatch.setattr(bench_serving, "_near_answers", lambda _: None)
    settings = SETTINGS._replace(requests=9, concurrency=[1, 8], warm=2)
    rows: list[Any] = [SimpleNamespace(prompt=str(n), warm=n < 5) for n in range(20)]
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


def test_every_question_comes_twice_and_rounds_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, _ = contenders_asked(monkeypatch, {"plain": "a", "ours": "a"})

    @contextlib.contextmanager
    def started(_model: str, kinds: Any, *, dtype: str) -> Any:  # noqa: ARG001
        assert list(kinds) == ["exact hits off", "in memory", "in memory and Redis"]
        yield {"exact hits off": "plain", "in memory": "ours"}

    monkeypatch.setattr(bench_serving, "started", started)
    settings = SETTINGS._replace(requests=6, concurrency=[1, 8])
    rows: list[Any] = [SimpleNamespace(prompt=str(n), warm=False) for n in range(14)]
    measured = bench_serving.bench_repeats(settings, rows)
    assert len(asked) == 2 + 2 * 2 * 2
    ratios = [row for row in measured if row["name"].startswith("throughput /")]
    assert [(row["method"], row["concurrency"], row["value"]) for row in ratios] == [
        ("in memory", 1, 2.0),
        ("in memory", 8, 2.0),
    ]
    with pytest.raises(RuntimeError, match="a question for each of 4 rounds"):
        bench_serving.bench_repeats(settings, rows[:4])


def test_too_few_questions_are_named() -> None:
    settings = SETTINGS._replace(rounds=3, concurrency=[1, 8], warm=1)
    rows: list[Any] = [SimpleNamespace(prompt=str(n), warm=n < 2) for n in range(5)]
    with pytest.raises(RuntimeError, match=r"each of 6 rounds beside the 1 that .* came 4"):
        bench_serving.bench_methods(settings, rows)


def test_the_spread_is_read_from_what_was_measured() -> None:
    median = {**ROWS[-1], "name": "whole_ms_p50", "value": 40.0}
    assert math.isnan(serving_report._tail_of(median, ROWS))
    tail = {**median, "name": "whole_ms_p99", "value": 90.0}
    assert serving_report._tail_of(median, [*ROWS, {**tail, "concurrency": 1}, tail]) == 90
    assert math.isnan(serving_report._tail_of(tail, [tail]))
    assert serving_report._range_of(median) == (40, 40)
    assert serving_report._range_of({**median, "note": "35 to 44"}) == (35, 44)


def test_the_plot_is_written_as_png_and_svg(tmp_path: Path) -> None:
    png, svg = save_plots(tmp_path / "docs" / "serving", ROWS)
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    assert "<svg" in text


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["--only", "exact,mist"], "--only: unknown 'mist'; there are exact, miss, methods, "),
        (["--methods", "none,magic"], "--methods: unknown 'magic'; there are none, "),
        (
            ["--concurrency", "1,x"],
            "--concurrency: expected whole numbers from 1 on with commas between, got '1,x'",
        ),
        (["--requests", "0"], "--requests"),
        (["--trace", "/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    asked: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_what_is_asked_for_is_measured_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []

    def bench_miss(settings: Settings, _rows: Any) -> list[dict[str, Any]]:
        asked.append(settings)
        return ROWS[:1]

    monkeypatch.setattr(bench_serving, "bench_miss", bench_miss)
    csv = tmp_path / "a.csv"
    options = ["--only", "miss", "--concurrency", "1,32", "--requests", "8", "--csv", str(csv)]
    assert main(options) == 0
    assert (asked[0].concurrency, asked[0].requests, asked[0].dtype) == ([1, 32], 8, "float32")
    (row,) = read_rows(csv)
    assert (row["requests"], row["name"], row["value"]) == ("8", "tokens_per_s", "100")
    assert row["model"].startswith("demo_model")


class Ours:
    """A server of ours as far as its figures are read."""

    def __init__(self, *, exact: int, state: str = "ready") -> None:
        self._exact, self._state = exact, state
        self.num_asked = 0

    def stats(self) -> Any:
        self.num_asked += 1
        retrieval = {"state": self._state, "detail": "no embedding model"}
        counts = {"exact": self._exact * (self.num_asked > 1)}
        return {"front_end": {"retrieval": retrieval, "counts": counts}}

    hit_counts = Server.hit_counts
    wait_for_retrieval = Server.wait_for_retrieval


@pytest.mark.parametrize("exact", [0, 3, 4])
def test_hits_are_timed_only_if_they_were_hits(monkeypatch: pytest.MonkeyPatch, exact: int) -> None:
    async def ask_all(_server: Any, questions: list[str], **_how: Any) -> Any:
        return [Timing(0.1, 0.2, 10, "a") for _ in questions], 1.0

    @contextlib.contextmanager
    def running(*_: str, dtype: str) -> Any:  # noqa: ARG001
        yield (Ours(exact=exact),)

    monkeypatch.setattr(bench_serving, "ask_all", ask_all)
    monkeypatch.setattr(bench_serving, "running", running)
    rows: list[Any] = [SimpleNamespace(prompt=str(n)) for n in range(9)]
    if exact == SETTINGS.requests:
        assert bench_serving.bench_exact(SETTINGS, rows)
        return
    with pytest.raises(RuntimeError, match=f"expected 4 exact hits, came {exact}"):
        bench_serving.bench_exact(SETTINGS, rows)


def test_a_server_without_near_answers_is_not_measured() -> None:
    Ours(exact=0).wait_for_retrieval()  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="cannot be found: degraded: no embedding model"):
        Ours(exact=0, state="degraded").wait_for_retrieval()  # type: ignore[arg-type]
