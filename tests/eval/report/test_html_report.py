"""The page of results: what matters comes first, and nothing is cut off or left out."""

import html
import re
import shlex
from typing import Any

from reprise.eval.replay.results import Run
from reprise.eval.report.html_report import render_html

CONFIG: dict[str, Any] = {
    "engine": "replay",
    "machine": "two cores",
    "traces": ["/data/my support.jsonl", "b.jsonl"],
    "methods": ["none", "semantic-cache"],
    "cost": 0.0,
    "threshold": 0.8,
    "num_speculative_tokens": None,
    "limit": None,
    "seed": 0,
    "suffix_best": {"b": {"max_depth": 24}},
}


def run(method: str, **figures: Any) -> Run:
    return Run(
        trace="b",
        method=method,
        requests=30,
        steps=90,
        emitted_tokens=270,
        drafted_tokens=0,
        accepted_tokens=0,
        mean_acceptance_length=3.0,
        acceptance_rate=None,
        drafted_per_step=0.0,
        model_speedup=3.0,
        **figures,
    )


def page() -> str:
    runs = [run("none"), run("semantic-cache", hit_rate=0.5, changed_answers=0.75)]
    return render_html(CONFIG, runs, plot_svg="<svg></svg>")


def headings(table: str) -> list[str]:
    return re.findall("<th>(.*?)</th>", table)


def test_what_matters_comes_first_and_the_rest_folds_away() -> None:
    first, rest = re.findall("<table>.*?</table>", page())
    assert headings(first) == [
        "method",
        "speedup at 0",
        "changed answers",
        "MAL",
        "drafted a step",
    ]
    assert headings(rest) == ["method", "requests", "cache hits"]
    assert "75.0%" in first
    assert re.search(r"<details><summary>.*?</summary><table>", page())


def test_a_speedup_that_was_measured_is_that_of_the_clock() -> None:
    runs = [
        run("none", output_tokens_per_s=200.0),
        run("suffix", output_tokens_per_s=300.0),
        run("reprise", output_tokens_per_s=250.0),
    ]
    config = {name: value for name, value in CONFIG.items() if name != "cost"}
    measured = render_html(config | {"engine": "vllm"}, runs, plot_svg=None)
    (first, _) = re.findall("<table>.*?</table>", measured)
    assert headings(first) == ["method", "tokens/s", "to none", "MAL", "drafted a step"]
    assert re.findall(r"<td>(\d\.\d\d)</td><td>3\.000", first) == ["1.00", "1.50", "1.25"]
    assert "<td class=best>300</td>" in first
    # Without a cost there is no computed speedup to explain, without a clock no tokens/s.
    assert "Speedup" not in measured
    assert "Tokens/s" in measured
    assert "Speedup" in page()
    assert "Tokens/s" not in page()


def test_settings_are_written_as_they_are_typed() -> None:
    (command,) = re.findall("<code>(.*?)</code>", page())
    words = shlex.split(html.unescape(command))
    assert words[:2] == ["python", "eval/acceptance_rate.py"]
    assert words[words.index("--trace") :][:3] == ["--trace", "/data/my support.jsonl", "b.jsonl"]
    assert words[words.index("--methods") + 1] == "none,semantic-cache"
    assert words[words.index("--cost") + 1] == "0.0"
    assert "--limit" not in words
    settings = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page()))
    assert settings == {"machine": "two cores", "suffix best": "b max_depth 24"}
