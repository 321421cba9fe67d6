"""Tables of addresses: what compiled code opens is what was made, field by field."""

from typing import Annotated, Any, NamedTuple

import numpy as np

from reprise.spec.predictor.features import Weights
from reprise.spec.predictor.prediction_trace import PredictionTrace, make_trace, trace_table
from reprise.spec.predictor.scratch import Scratch, make_scratch, scratch_table
from reprise.spec.predictor.weights import start_weights
from reprise.spec.runtime.tables import (
    address_table,
    fields_of,
    float32,
    int16,
    int32,
    make_arrays,
    opener,
)


class Three(NamedTuple):
    counts: Annotated[Any, int32(4)]
    features: Annotated[Any, int16(2, 3)]
    prob: Annotated[Any, float32()]


def test_what_is_opened_is_what_was_made() -> None:
    three = make_arrays(Three, 5, 7)
    for number, array in enumerate(three):
        array[:] = np.arange(array.size).reshape(array.shape) + 100 * number
    opened = opener(Three, num_leading=2)(address_table(three, num_leading=2))
    assert type(opened) is Three
    for made, seen in zip(three, opened, strict=True):
        assert (seen.shape, seen.dtype) == (made.shape, made.dtype)
        assert np.array_equal(seen, made)
    opened.counts[4, 6, 3] = -1
    assert three.counts[4, 6, 3] == -1


def test_every_table_of_drafting_has_an_address_for_each_field() -> None:
    trace, scratch, weights = make_trace(2, 3), make_scratch(), start_weights()
    assert trace_table(trace).tolist() == [array.ctypes.data for array in trace] + [2, 3]
    assert scratch_table(scratch).tolist() == [array.ctypes.data for array in scratch]
    for kind, arrays, leading in (
        (PredictionTrace, trace, (2, 3)),
        (Scratch, scratch, ()),
        (Weights, weights, ()),
    ):
        fields = fields_of(kind)
        assert tuple(fields) == kind._fields
        for field, array in zip(fields.values(), arrays, strict=True):
            assert (array.shape, array.dtype) == ((*leading, *field.shape), field.dtype)
