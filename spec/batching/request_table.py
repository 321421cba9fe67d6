"""The table of live requests: a row of numbers and a trace for each, and their counters."""

import numpy as np
import numpy.typing as npt

from reprise.spec.api.stats import SOURCES, RequestStats
from reprise.spec.predictor.prediction_trace import make_trace
from reprise.spec.runtime.layout import (
    ACCEPTED_CONTEXT,
    DRAFTED_CONTEXT,
    EMITTED,
    REQUEST_FIELDS,
    STEPS,
)

# Memory is taken for the requests that there are; only more than so many cost a copy of all that is
# kept for them, at once and in a step.
FIRST_REQUESTS = 1024


class RequestTable:
    """Rows and traces by request index, which is free again once the request has ended."""

    def __init__(self, num_positions: int) -> None:
        """Drafts have fewer than `num_positions` tokens."""
        self.rows = np.zeros((FIRST_REQUESTS, REQUEST_FIELDS), np.int64)
        """[n, REQUEST_FIELDS]; another array once the table has grown."""
        self.trace = make_trace(FIRST_REQUESTS, num_positions)
        self._num_positions = num_positions
        self._free = list(range(FIRST_REQUESTS - 1, -1, -1))

    def take(self) -> int:
        """Return a request index that is free, and is no longer."""
        if not self._free:
            self._grow()
        return self._free.pop()

    def free(self, req_idx: int) -> None:
        """Clear the row of a request that has ended."""
        self.rows[req_idx] = 0
        self._free.append(req_idx)

    def _grow(self) -> None:
        old, size = self.trace, len(self.rows)
        self.trace = make_trace(2 * size, self._num_positions)
        for before, after in zip(old, self.trace, strict=True):
            after[:size] = before
        self.rows = np.concatenate((self.rows, np.zeros_like(self.rows)))
        self._free.extend(range(size, 2 * size))


def stats_of(row: npt.NDArray[np.int64]) -> RequestStats:
    """Read the counters of a row [REQUEST_FIELDS], or of a sum of rows."""
    stats = RequestStats(steps=int(row[STEPS]), emitted=int(row[EMITTED]))
    for i, source in enumerate(SOURCES):
        stats.by_source[source].drafted = int(row[DRAFTED_CONTEXT + i])
        stats.by_source[source].accepted = int(row[ACCEPTED_CONTEXT + i])
    stats.drafted = sum(count.drafted for count in stats.by_source.values())
    stats.accepted = sum(count.accepted for count in stats.by_source.values())
    return stats
