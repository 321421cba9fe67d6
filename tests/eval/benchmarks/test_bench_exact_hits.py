"""The benchmark of exact hits: its arithmetic and what it refuses, without a server."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprise.eval.benchmarks import bench_exact_hits
from reprise.eval.benchmarks.bench_exact_hits import main
from reprise.eval.benchmarks.exact_hits import hits, misses
from reprise.eval.benchmarks.exact_hits.rows import FIELDS, figure_row
from reprise.eval.benchmarks.serving.load import Timing
from reprise.eval.report.results_csv import read_rows


def timings(*texts: str) -> list[Timing]:
    return [Timing(0.001, 0.01 * (n + 1), 5, text) for n, text in enumerate(texts)]


def test_quantiles_of_whole_answers() -> None:
    p50, p99 = hits._rows("redis", timings(*"abcde"), note="n")
    assert (p50["name"], p50["value"], p50["unit"]) == ("whole answer, p50", 30.0, "ms")
    assert (p99["value"], p99["from"], p99["requests"], p99["note"]) == (50.0, "redis", 5, "n")
    assert set(p50) == set(FIELDS)


def test_what_differs_or_was_no_hit_is_an_error() -> None:
    server: Any = SimpleNamespace(hit_counts=lambda: {"exact": 2})
    hits._check(timings("a", "b"), timings("a", "b"), server, num_exact=2)
    with pytest.raises(RuntimeError, match="1 of 2 answers differ"):
        hits._check(timings("a", "b"), timings("a", "c"), server, num_exact=2)
    with pytest.raises(RuntimeError, match="expected 3 exact hits, came 2"):
        hits._check(timings("a", "b"), timings("a", "b"), server, num_exact=3)


def test_what_a_look_up_adds_is_the_median_of_pairs() -> None:
    def timing(first_ms: float, whole_ms: float) -> Timing:
        return Timing(first_ms / 1e3, whole_ms / 1e3, 5, "a")

    asked = [
        (timing(11, 104), timing(10, 100)),
        (timing(22, 202), timing(20, 200)),
        (timing(90, 300), timing(10, 300)),  # the machine stood still
    ]
    rows = misses._pair_rows("redis", asked)
    found = {(row["name"].split(",")[0].split(" /")[0], row["unit"]): row["value"] for row in rows}
    assert found == {
        ("first token", "ms"): 2.0,
        ("first token", "x"): 1.1,
        ("whole answer", "ms"): 2.0,
        ("whole answer", "x"): 1.01,
    }


def test_sections_are_chosen_and_their_rows_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = figure_row("miss", "redis", ["q"], "throughput", 1.5, "tok/s")
    monkeypatch.setattr(bench_exact_hits, "bench_miss", lambda *_, **__: [row])
    monkeypatch.setattr(bench_exact_hits, "bench_hits", lambda *_, **__: pytest.fail("not asked"))
    csv = tmp_path / "rows.csv"
    assert main(["--only", "miss", "--csv", str(csv)]) == 0
    assert "throughput" in capsys.readouterr().out
    (kept,) = read_rows(csv)
    assert (kept["from"], kept["value"], kept["note"]) == ("redis", "1.5", "")
    assert main(["--only", "mist", "--csv", str(csv)]) == 2
    assert (
        "--only: unknown 'mist'; there are look-ups, hits, miss, pairs" in capsys.readouterr().err
    )
