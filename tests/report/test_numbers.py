"""Numbers as the report prints them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (0.0, "0"),
        (9.996, "10.0"),
        (24.3, "24.3"),
        (-0.0123456, "−0.0123"),
        (200_000, "200\u202f000"),
    ],
)
def test_significant(value: float | None, text: str) -> None:
    assert numbers.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_600, "1.00 MB"),
        (3_402_118, "3.40 MB"),
        (2_500_000_000, "2.50 GB"),
        (None, "–"),
    ],
)
def test_size(value: float | None, text: str) -> None:
    assert numbers.size(value).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (numbers.count, 4_212_096, "4.21 M"),
        (numbers.count, 12, "12.0"),
        (numbers.milliseconds, 0.642, "642 µs"),
        (numbers.milliseconds, 1500.0, "1.50 s"),
        (numbers.seconds, 0.01, "< 0.1 s"),
        (numbers.seconds, 59.96, "60.0 s"),
        (numbers.seconds, 125.4, "2 min 05 s"),
        (numbers.percent, 1.0, "100 %"),
        (numbers.percent, 0.0, "0 %"),
        (numbers.percent, 0.9999, "> 99.9 %"),
        (numbers.percent, 0.0001, "< 0.1 %"),
        (numbers.percent, 0.3625, "36.2 %"),
        (numbers.scientific, 2.14e-6, "2.1 × 10⁻⁶"),
        (numbers.scientific, 0.0, "0"),
        (numbers.scientific, 0.213, "0.21"),
        (numbers.p_value, 0.0002, "p < 0.001"),
        (numbers.p_value, 0.62, "p = 0.62"),
        (numbers.rate, 3110.2, "3 110 tok/s"),
    ],
)
def test_units(show, value, text: str) -> None:
    assert show(value).replace("\u00a0", " ").replace("\u202f", " ") == text


@given(st.floats(min_value=1e-9, max_value=1e12))
def test_three_significant_figures_are_within_half_a_percent(value: float) -> None:
    printed = numbers.significant(value).replace("\u202f", "")
    assert float(printed) == pytest.approx(value, rel=0.0051)


@given(st.floats(min_value=0, max_value=1))
def test_only_exactly_all_is_printed_as_all(share: float) -> None:
    printed = numbers.percent(share)
    assert (printed.split("\u00a0")[0] == "100") == (share == 1)
    assert (printed.split("\u00a0")[0] == "0") == (share == 0)


@pytest.mark.parametrize(
    ("before", "after", "better", "text", "verdict"),
    [
        (100, 50, "lower", "−50.0\u00a0%", "better"),
        (100, 50, "higher", "−50.0\u00a0%", "worse"),
        (23.8, 24.6, "lower", "+3.4\u00a0%", "worse"),
        (10, 40, "higher", "×4.0", "better"),
        (10, 10, "lower", "no change", "same"),
    ],
)
def test_change(before: float, after: float, better, text: str, verdict: str) -> None:
    found = numbers.change(before, after, better=better)
    assert found == numbers.Change(text, verdict)


@pytest.mark.parametrize(("before", "after"), [(None, 1), (1, None), (0, 1), (math.nan, 1)])
def test_no_change_without_two_numbers(before, after) -> None:
    assert numbers.change(before, after, better="lower") is None


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, 10**400, [1]])
def test_finite_refuses(value: object) -> None:
    assert numbers.finite(value) is None
