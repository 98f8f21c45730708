"""What is printed is never on the wrong side of the figure."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dp.accounting.figures import delta_shown, lower, shown_down, shown_up, upper

figures = st.floats(0, 1e300) | st.floats(0, 20) | st.floats(0, 1e-3)
places = st.integers(0, 8)


@given(figures, places)
@example(7.169494, 3)
@example(0.1 + 0.2, 1)
@example(1.005, 2)
@example(2.675, 2)
def test_a_cost_is_printed_no_lower_and_less_than_a_place_higher(value: float, digits: int) -> None:
    for shown in (float(shown_up(value, digits)), upper(value, digits)):
        assert isinstance(shown, float)
        assert value <= shown <= value * (1 + 1e-15) + 10.0**-digits


@given(figures, places)
@example(7.169494, 3)
@example(0.3, 1)
def test_what_is_left_is_printed_no_higher_and_less_than_a_place_lower(
    value: float, digits: int
) -> None:
    for shown in (float(shown_down(value, digits)), lower(value, digits)):
        assert isinstance(shown, float)
        assert value * (1 - 1e-15) - 10.0**-digits <= shown <= value


@given(st.floats(1e-300, 0.1))
@example(1e-5)
@example(1.23456449e-5)
@example(9.9999999e-6)
def test_a_delta_is_printed_no_lower(value: float) -> None:
    assert value <= float(delta_shown(value)) <= value * (1 + 1e-5)


def test_a_figure_of_few_digits_stays_as_it_is() -> None:
    """Also where the float of these digits is a little above or below them."""
    assert [shown_up(v, 3) for v in (8.0, 7.1, 0.3, 1e-3)] == ["8.000", "7.100", "0.300", "0.001"]
    assert [shown_down(v, 3) for v in (8.0, 7.1, 0.3)] == ["8.000", "7.100", "0.300"]
    assert [delta_shown(v) for v in (1e-5, 1e-9, 0.1, 2.5e-6)] == [
        "1e-05",
        "1e-09",
        "0.1",
        "2.5e-06",
    ]


def test_infinity_is_a_word_and_no_number() -> None:
    assert shown_up(math.inf) == shown_down(math.inf) == delta_shown(math.inf) == "infinite"
    assert upper(math.inf) == lower(math.inf) == "infinite"
    assert shown_up(-math.inf) == "-infinite"
    for show in (shown_up, shown_down, delta_shown):
        with pytest.raises(ValueError, match="number"):
            show(math.nan)
