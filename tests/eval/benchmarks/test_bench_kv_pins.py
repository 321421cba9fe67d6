"""What the benchmark of pinned prefixes reports, and what it refuses to report."""

from pathlib import Path
from typing import Any

import pytest

from reprise.eval.benchmarks import bench_kv_pins
from reprise.eval.benchmarks.bench_kv_pins import FIELDS, main
from reprise.eval.benchmarks.serving.load import Timing
from reprise.eval.report.results_csv import ORIGIN, read_rows


class Server:
    """Answers in a fixed time, and has kept so many tokens."""

    def __init__(self, first_token_s: float, *, saved: int = 0, text: str = "a") -> None:
        self.timing = Timing(first_token_s, 1.0, 16, text)
        self._saved = saved

    def stand_still(self) -> None:
        """At once."""

    go_on = stand_still

    def stats(self) -> dict[str, Any]:
        return {"kv_pins": [{"saved_tokens": self._saved}]}


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def chats(server: Server, _: str, questions: Any, __: Any) -> list[Timing]:
        return [server.timing for _ in questions]

    monkeypatch.setattr(bench_kv_pins, "chats", chats)


def test_the_ratio_is_that_of_the_medians() -> None:
    servers: Any = {False: Server(0.04), True: Server(0.01, saved=512)}
    rows = bench_kv_pins.bench_first_token(servers, 4)
    assert [row["value"] for row in rows] == [40.0] * 3 + [10.0] * 3
    assert rows[-2]["note"] == "0.25 x; 512 tokens kept"


def test_other_answers_and_pins_without_effect_are_no_result() -> None:
    servers: Any = {False: Server(0.04), True: Server(0.01, saved=512, text="b")}
    with pytest.raises(RuntimeError, match="answers with pins differ"):
        bench_kv_pins.bench_first_token(servers, 4)
    servers = {False: Server(0.04), True: Server(0.01)}
    with pytest.raises(RuntimeError, match="pins have saved nothing"):
        bench_kv_pins.bench_first_token(servers, 4)


def test_rows_are_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = bench_kv_pins._row("first-token", True, 4, "first token, p50", 1.5, "ms")
    monkeypatch.setattr(bench_kv_pins, "serving", _nothing)
    monkeypatch.setattr(bench_kv_pins, "bench_first_token", lambda *_: [row])
    csv = tmp_path / "rows.csv"
    assert main(["--only", "first-token", "--csv", str(csv)]) == 0
    (found,) = read_rows(csv)
    assert list(found) == [*ORIGIN, *FIELDS]
    assert (found["pins"], found["value"], found["model"]) == ("with", "1.5", "demo")
    assert main(["--only", "others", "--csv", str(csv)]) == 2


class _nothing:  # noqa: N801 - in place of a context manager
    def __init__(self, *_: Any) -> None:
        """As `serving`."""

    def __enter__(self) -> dict[bool, Any]:
        return {}

    def __exit__(self, *_: Any) -> None:
        """Nothing to stop."""
