"""What the weights that drafting starts from are learned from."""

from pathlib import Path

import pytest

from reprise.eval import train_drafts
from reprise.eval.report.command_line import InputError
from reprise.eval.train_drafts import SOURCES, source_files


def test_every_source_is_there_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({path.parent for path in source_files()}) >= len(SOURCES)
    for source in ("no_such_package/part", "numpy/no_such_part"):
        monkeypatch.setattr(train_drafts, "SOURCES", (source,))
        with pytest.raises(InputError, match=f"no source of {source}"):
            list[Path](source_files())
