"""How sure a median is."""

import numpy as np

from reprise.eval.report.intervals import median_interval


def test_it_leaves_out_as_many_at_each_end_as_coins_allow() -> None:
    assert median_interval([1.0] * 5) is None  # all five on one side: once in 16
    assert median_interval([3, 1, 2, 6, 5, 4]) == (1, 6)
    # Fewer than 4 heads of 15: 1.8%, fewer than 5: 5.9%, at either end.
    assert median_interval(list(range(15))) == (3, 11)


def test_it_holds_the_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    intervals = [median_interval(list(random.exponential(size=15))) for _ in range(2000)]
    held = [low <= np.log(2) <= high for low, high in intervals if low is not None]  # type: ignore[misc]
    assert len(held) == 2000
    assert 0.95 <= np.mean(held) <= 0.98  # 96.5% are expected
