"""The command: its JSON, its errors, its page and its plots."""

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import light_processes
import pytest

from reprise.eval import acceptance_rate
from reprise.eval.acceptance_rate import main
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live import engine_turns
from reprise.eval.replay import methods, peer_drafters
from reprise.eval.replay.traces import save_trace
from reprise.eval.report.results_csv import read_rows

RUN_KEYS = {
    *("trace", "method", "requests", "steps", "emitted_tokens", "drafted_tokens"),
    *("accepted_tokens", "mean_acceptance_length", "acceptance_rate", "drafted_per_step"),
    *("model_speedup", "propose_us", "start_us", "bytes_per_cached_token", "by_source"),
    *("hit_rate", "changed_answers", "wall_s", "output_tokens_per_s", "identical_outputs"),
}
Fails = Callable[..., str]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Six timed rows of the demo trace, and the 50 or so warm ones of their topics."""
    rows = make_demo_trace()
    timed = [row for row in rows if not row.warm][:7]
    timed = [row for row in timed if row.group != "aside"]
    topics = {row.group for row in timed}
    warm = [row for row in rows if row.warm and row.group in topics]
    path = tmp_path / "small.jsonl"
    save_trace(path, warm + timed)
    return path


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must end with status 2 and one line, and returns the line."""

    def run(*arguments: str) -> str:
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("acceptance_rate.py: error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.mark.slow
def test_replay_of_all_methods(trace: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    names = ["none", "ngram", "semantic-cache", "reprise"]
    if methods.suffix_installed():
        names[2:2] = ["suffix", "suffix-long", "suffix-best"]
    arguments = ["--trace", str(trace), "--methods", ",".join(names), "--output", str(output)]
    assert main([*arguments, "--quiet", "--seed", "3"]) == 0
    result = json.loads(output.read_text())
    assert result["version"] == 1
    assert result["config"]["seed"] == 3
    assert [run["method"] for run in result["runs"]] == names
    assert all(set(run) == RUN_KEYS for run in result["runs"])
    by_method = {run["method"]: run for run in result["runs"]}
    none, reprise = by_method["none"], by_method["reprise"]
    assert none["model_speedup"] == 1.0
    assert none["requests"] == reprise["requests"] == 6
    assert reprise["emitted_tokens"] == none["emitted_tokens"] == none["steps"]
    assert reprise["mean_acceptance_length"] > 1.2
    assert sum(source["drafted"] for source in reprise["by_source"].values()) > 0
    assert by_method["semantic-cache"]["hit_rate"] is not None
    assert none["hit_rate"] is None


def test_table_page_and_progress(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, plot = tmp_path / "page.html", tmp_path / "plot.svg"
    arguments = ["--trace", str(trace), "--methods", "none,ngram", "--limit", "2"]
    assert main([*arguments, "--html", str(page), "--plot", str(plot)]) == 0
    table = capsys.readouterr().out
    assert "ngram" in table
    assert "small" in table
    text = page.read_text()
    assert text.count("<tr class=") == 2 * 2  # what matters, and what folds away
    assert "<svg" in text
    assert text.count("<article") == 2
    known = ("http://www.w3.org", "http://purl.org", "http-equiv")
    assert "http" not in re.sub("|".join(known), "", text)
    assert plot.read_text().lstrip().startswith("<?xml")


def test_the_page_of_the_demo_trace_names_no_file_of_that_name(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["--methods", "none", "--limit", "1", "--quiet", "--html", str(page)]) == 0
    assert "--methods none" in page.read_text()
    assert "--trace" not in page.read_text()


def test_results_are_there_before_the_frontiers(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise SystemExit(143)

    monkeypatch.setattr(acceptance_rate, "trace_frontiers", stopped)
    output, plot = tmp_path / "runs.json", tmp_path / "plot.svg"
    arguments = ["--trace", str(trace), "--methods", "none", "--limit", "1", "--quiet"]
    with pytest.raises(SystemExit):
        main([*arguments, "--output", str(output), "--plot", str(plot)])
    assert len(json.loads(output.read_text())["runs"]) == 1
    assert not plot.exists()


def test_runs_are_appended_as_rows(trace: Path, tmp_path: Path) -> None:
    csv = tmp_path / "runs.csv"
    for cost in ("0.02", "0.5"):
        options = ["--trace", str(trace), "--methods", "none,ngram", "--cost", cost, "--quiet"]
        assert main([*options, "--csv", str(csv)]) == 0
    rows = read_rows(csv)
    assert [(row["method"], row["cost"]) for row in rows] == [
        *(("none", "0.02"), ("ngram", "0.02")),
        *(("none", "0.5"), ("ngram", "0.5")),
    ]
    assert {(row["engine"], row["trace"]) for row in rows} == {("replay", "small")}
    assert rows[0]["mean_acceptance_length"] == "1.0"
    assert all(row["machine"] and row["model"] for row in rows)


def test_quiet_prints_nothing(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trace", str(trace), "--methods", "none", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_results_that_cannot_be_written_are_one_line(trace: Path, fails: Fails) -> None:
    given = ("--trace", str(trace), "--methods", "none", "--quiet", "--output", "/dev/full")
    assert "No space left on device" in fails(*given)


def test_what_may_not_be_written_is_said_before_the_work(
    fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    assert "cannot be written to" in fails("--output", str(tmp_path / "out.json"))


def test_a_file_of_other_rows_is_refused_before_the_work(
    fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance_rate, "_load_traces", lambda *_: pytest.fail("the work"))
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    assert "expected columns" in fails("--methods", "none", "--csv", str(other))


def test_several_traces_of_one_option(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    save_trace(other, [row for row in make_demo_trace() if not row.warm][:2])
    assert main(["--trace", str(trace), str(other), "--methods", "none", "--limit", "1"]) == 0
    table = capsys.readouterr().out
    assert table.index("small") < table.index("other")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "[default: 0.02; 0<=x<=10]" in " ".join(text.split())
    assert text.count("\n  --") >= 16


def test_bad_traces(fails: Fails, tmp_path: Path) -> None:
    assert "nowhere.jsonl: no such file" in fails("--trace", str(tmp_path / "nowhere.jsonl"))
    bad = tmp_path / "bad.jsonl"
    for text, message in (
        ('{"prompt": "p", "response": "r"}\n{', "bad.jsonl, line 2: not JSON"),
        ('{"prompt": "p"}', "bad.jsonl, line 1: the row has no 'response'"),
        ("\n", "the trace is empty"),
    ):
        bad.write_text(text)
        assert message in fails("--trace", str(bad))


def test_chat_logs_are_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, output = tmp_path / "chats.json.gz", tmp_path / "out.json"
    human, gpt = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello there"}
    rows = [{"conversations": [human, gpt, human, gpt]}, {"conversations": [human]}]
    log.write_bytes(gzip.compress(json.dumps(rows, indent=1).encode()))
    arguments = ("--trace", str(log), "--methods", "none", "--output", str(output))
    assert main(arguments) == 0
    assert "1 row without a question or an answer left out" in capsys.readouterr().err
    (run,) = json.loads(output.read_text())["runs"]
    assert run["requests"] == 2
    assert main([*arguments, "--quiet"]) == 0
    assert "left out" not in capsys.readouterr().err


def test_bad_arguments(fails: Fails, tmp_path: Path) -> None:
    assert "unknown method 'magic'" in fails("--methods", "none,magic")
    assert "names no method" in fails("--methods", ",")
    assert "--limit" in fails("--limit", "0")
    assert "--cost" in fails("--cost", "-1")
    assert "no such tokenizer file" in fails("--tokenizer", str(tmp_path))
    assert "folder does not exist" in fails("--output", str(tmp_path / "no" / "out.json"))
    assert "is a folder" in fails("--output", str(tmp_path))
    assert "less than or equal to 64" in fails("--num-speculative-tokens", "99999999999")
    page = str(tmp_path / "page.html")
    assert "is named as another result too" in fails("--html", page, "--output", page)
    log = tmp_path / "log.jsonl"
    log.write_text('{"prompt": "a", "response": "b"}')
    assert "is named as a trace too" in fails("--trace", str(log), "--output", str(log))
    assert log.read_text()
    assert ".png or .svg" in fails("--plot", str(tmp_path / "plot.gif"))
    assert "--engine replay" in fails("--plot", str(tmp_path / "p.png"), "--engine", "vllm")
    if methods.suffix_installed():
        assert "replay only" in fails("--engine", "vllm", "--methods", "suffix-best")


def test_a_broken_tokenizer(fails: Fails, tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    assert "cannot be loaded" in fails("--tokenizer", str(broken))


def test_a_peer_that_is_not_installed(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (methods, peer_drafters):
        monkeypatch.setattr(module, "suffix_installed", lambda: False)
    assert methods.parse_methods(None) == ["none", "ngram", "semantic-cache", "reprise"]
    assert "SuffixDecoding is left out" in capsys.readouterr().err
    assert "pip install -e '.[peers]'" in fails("--methods", "suffix")


@pytest.mark.slow
@pytest.mark.engine
def test_a_model_that_does_not_load(fails: Fails, trace: Path, tmp_path: Path) -> None:
    message = fails(
        *("--engine", "vllm", "--model", str(tmp_path), "--trace", str(trace)),
        *("--methods", "none"),
    )
    assert f"model {tmp_path}: " in message


@pytest.mark.slow
@pytest.mark.engine
def test_real_engines_give_identical_answers(
    trace: Path, tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Six requests are too few to learn what drafts cost here, and here they may not pay.
    monkeypatch.setenv("REPRISE_DRAFTS__VERIFY_COST", "0.02")
    for name, value in light_processes.BY_WORDS.items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "out.json"
    arguments = ["--engine", "vllm", "--model", str(demo_model), "--trace", str(trace)]
    arguments += ["--methods", "reprise,none", "--take-turns", "--output", str(output)]
    page = tmp_path / "page.html"
    arguments += ["--html", str(page)]
    # Turns so short that each engine is stopped in the middle of its work.
    monkeypatch.setattr(engine_turns, "_TURN_S", 0.05)
    assert main(arguments) == 0
    none, reprise = json.loads(output.read_text())["runs"]
    assert 0.0 < none["wall_s"] < 60.0
    assert (none["method"], reprise["method"]) == ("none", "reprise")
    assert none["identical_outputs"] == reprise["identical_outputs"] == 6
    assert none["mean_acceptance_length"] == 1.0
    assert reprise["mean_acceptance_length"] > 1.2
    assert reprise["steps"] < none["steps"] == none["emitted_tokens"]
    check_page_of_engine(page.read_text(), reprise, none)


def check_page_of_engine(page: str, reprise: dict[str, Any], none: dict[str, Any]) -> None:
    """The page's steps and sources are those that the engine counted."""
    articles = re.findall("<article.*?</article>", page, re.DOTALL)
    assert len(articles) == reprise["requests"]
    told = re.findall(r"tokens in (\d+) steps?; <b>(\d+) came for free", "".join(articles))
    assert sum(int(steps) for steps, _ in told) == reprise["steps"]
    # vLLM counts what it accepts beyond an answer's end, too: here a token of an answer at most.
    free = sum(int(free) for _, free in told)
    assert free <= reprise["accepted_tokens"] <= free + reprise["requests"]
    bars = re.findall(r"<span>none</span>.*?>(\d+) steps?<", "".join(articles), re.DOTALL)
    assert sum(map(int, bars)) == none["steps"]
    for source, name in (("near_answer", "n"), ("context", "c"), ("corpus", "k")):
        tokens = re.findall(rf"<i class='?{name}\b", "".join(articles))
        assert len(tokens) == reprise["by_source"][source]["accepted"]
    assert "data-partial" not in "".join(articles)
