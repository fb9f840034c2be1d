from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mobilekit.metrics.intervals import mcnemar_exact, wilson_interval


@given(st.data(), st.integers(1, 20_000), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(data: st.DataObject, n: int, confidence: float) -> None:
    correct = data.draw(st.integers(0, n))
    expected = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(correct, n, confidence=confidence)
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= low <= correct / n <= high <= 1


def test_wilson_widths_of_the_specification() -> None:
    for n, points in ((16_186, 0.77), (200, 6.9)):
        low, high = wilson_interval(n // 2, n)
        assert 50 * (high - low) == pytest.approx(points, abs=0.05)


@pytest.mark.parametrize(
    ("correct", "n", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)]
)
def test_wilson_refuses(correct: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"needs|between"):
        wilson_interval(correct, n, confidence=confidence)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_scipy(first: int, second: int) -> None:
    n = first + second
    expected = 1.0 if n == 0 else stats.binomtest(min(first, second), n, 0.5).pvalue
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(first, second) == mcnemar_exact(second, first)


def test_mcnemar_by_hand_and_at_the_size_of_the_whole_set() -> None:
    assert mcnemar_exact(0, 5) == 2 / 32
    assert mcnemar_exact(7, 7) == 1.0
    expected = stats.binomtest(3900, 8100, 0.5).pvalue
    assert mcnemar_exact(3900, 4200) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)
