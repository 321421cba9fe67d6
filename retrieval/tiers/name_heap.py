"""Names by a number, the lowest first at hand, with numbers that change all the time."""

from __future__ import annotations


class NameHeap:
    """A binary heap that knows where each name lies. Not thread-safe.

    Setting a number and removing a name take O(log n), with no step that costs more: unlike a heap
    with stale entries it never has to be rebuilt.

    Example:
        >>> heap = NameHeap()
        >>> heap.set("a", 2.0)
        >>> heap.set("b", 1.0)
        >>> heap.lowest()
        'b'
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: list[float] = []
        self._place_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def get(self, name: str) -> float | None:
        """Return the number of a name; None if it is not there."""
        place = self._place_of.get(name)
        return None if place is None else self._numbers[place]

    def set(self, name: str, number: float) -> None:
        """Add a name, or change its number."""
        place = self._place_of.get(name)
        if place is None:
            place = len(self._names)
            self._names.append(name)
            self._numbers.append(number)
        self._sift(place, name, number)

    def discard(self, name: str) -> None:
        """Remove a name; one that is not there is no error."""
        place = self._place_of.pop(name, None)
        if place is None:
            return
        last, number = self._names.pop(), self._numbers.pop()
        if last != name:
            self._sift(place, last, number)

    def lowest(self, *, but: str | None = None) -> str | None:
        """Return the name of the lowest number, `but` left out; None if there is none."""
        if self._names and self._names[0] != but:
            return self._names[0]
        # The next one is one of the two below the first.
        below = range(1, min(3, len(self._names)))
        place = min(below, key=self._numbers.__getitem__, default=None)
        return None if place is None else self._names[place]

    def clear(self) -> None:
        """Remove all names."""
        self._names.clear()
        self._numbers.clear()
        self._place_of.clear()

    def _sift(self, place: int, name: str, number: float) -> None:
        """Move a name to its place, from `place` up or down."""
        names, numbers, place_of = self._names, self._numbers, self._place_of
        while place and number < numbers[(place - 1) // 2]:
            above = (place - 1) // 2
            names[place], numbers[place] = names[above], numbers[above]
            place_of[names[place]] = place
            place = above
        count = len(names)
        while (below := 2 * place + 1) < count:
            if below + 1 < count and numbers[below + 1] < numbers[below]:
                below += 1
            if number <= numbers[below]:
                break
            names[place], numbers[place] = names[below], numbers[below]
            place_of[names[place]] = place
            place = below
        names[place], numbers[place] = name, number
        place_of[name] = place
