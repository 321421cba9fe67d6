"""A clause: a part of a question that asks something by itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clause:
    """A part of a question: `text[start:end]`, after what it shares with an earlier part."""

    start: int
    end: int
    shared: str = ""
    """Words of an earlier clause that this one leaves out: "How do I" of "... and get it back"."""

    connective: str = ""
    """What joins it to the clause before; of the first, the conjunction that the question begins
    with."""

    def read(self, text: str) -> str:
        """Return the clause as a question of its own."""
        return self.shared + text[self.start : self.end]
