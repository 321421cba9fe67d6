"""What the weights that drafting starts from are learned from."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from reprise.eval import train_drafts
from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.report.command_line import InputError
from reprise.eval.train_drafts import SOURCES, source_files
from reprise.spec.predictor.weights import START_WEIGHTS


def test_every_source_is_there_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({path.parent for path in source_files()}) >= len(SOURCES)
    for source in ("no_such_package/part", "numpy/no_such_part"):
        monkeypatch.setattr(train_drafts, "SOURCES", (source,))
        with pytest.raises(InputError, match=f"no source of {source}"):
            list[Path](source_files())


@pytest.mark.parametrize("was_there", [True, False])
def test_start_values_are_as_they_were_where_learning_is_ended(
    was_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the second part: what the first one taught is in the file by then."""
    output = tmp_path / "weights.npz"
    if was_there:
        output.write_bytes(START_WEIGHTS.read_bytes())
    parts = itertools.count()

    def replay(*_: Any) -> None:
        assert output.exists()
        if next(parts):
            raise SystemExit(143)

    monkeypatch.setattr(train_drafts, "replay", replay)
    monkeypatch.setattr(train_drafts, "docstrings_and_functions", lambda: ([], []))
    monkeypatch.setattr(train_drafts, "Embedder", lambda: None)
    with pytest.raises(SystemExit):
        train_drafts.main(demo_tokenizer_path(), output)
    assert next(parts) == 2
    assert output.exists() == was_there
    if was_there:
        assert output.read_bytes() == START_WEIGHTS.read_bytes()
