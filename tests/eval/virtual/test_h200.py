"""The table of measured costs is what the pages say of it."""

import pytest

from reprise.eval.virtual.h200 import H200, captured_size, products_ms

DEVICE = H200(prefill_ms=0.0)


@pytest.mark.parametrize(
    ("batch", "each", "steps"), [(1, 16, 0.003), (8, 16, 0.013), (32, 4, 0.06), (32, 8, 0.10)]
)
def test_a_drafted_token_costs_what_it_was_measured_to(batch: int, each: int, steps: float) -> None:
    """In products alone, in steps of its request (docs/measurements.md)."""
    without = products_ms(batch)
    cost = (products_ms(batch * (1 + each)) - without) / without / each
    # Times are known to a tenth of a millisecond.
    assert cost == pytest.approx(steps, rel=0.2, abs=0.0015)


@pytest.mark.parametrize(("batch", "ms"), [(1, 4.8), (8, 5.0), (32, 5.3)])
def test_steps_without_drafts_take_what_they_were_measured_to(batch: int, ms: float) -> None:
    assert DEVICE.step_s(batch) * 1e3 == pytest.approx(ms)
    assert DEVICE.sent_ahead_s(batch) == DEVICE.step_s(batch)


def test_more_tokens_never_cost_less() -> None:
    for batch in (1, 5, 8, 32, 100, 128):
        costs = [DEVICE.step_s(batch, drafted) for drafted in range(0, 2100, 7)]
        assert costs == sorted(costs)
        assert DEVICE.sent_ahead_s(batch, 8) < DEVICE.step_s(batch, 8)
        assert DEVICE.step_s(batch, 0, 40) > DEVICE.step_s(batch)


def test_tokens_are_padded_to_captured_sizes() -> None:
    assert [captured_size(n) for n in (1, 3, 9, 255, 257, 512, 513)] == [
        1, 4, 16, 256, 272, 512, 513,
    ]  # fmt: skip
