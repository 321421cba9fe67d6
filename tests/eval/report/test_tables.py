"""Figures as tables show them."""

import pytest

from reprise.eval.report.tables import four_digits


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (18954.573, "18950"),
        (0.0926124, "0.09261"),
        (1943.823, "1944"),
        (0.0, "0"),
        (3e9, "3000000000"),
    ],
)
def test_figures_have_four_digits_and_no_exponent(value: float, shown: str) -> None:
    assert four_digits(value) == shown
