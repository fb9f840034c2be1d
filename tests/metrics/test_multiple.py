"""Holm's adjustment against its definition, read off the closed test procedure."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.metrics.multiple import holm


def test_a_worked_example() -> None:
    # 0.01 * 4, 0.013 * 3 raised to the one before, 0.04 * 2, 0.9
    assert holm([0.04, 0.01, 0.9, 0.013]) == pytest.approx([0.08, 0.04, 0.9, 0.04])
    assert holm([]) == []
    assert holm([0.2]) == [0.2]


@given(st.lists(st.floats(0, 1), max_size=7))
def test_it_is_the_closed_procedure_of_bonferroni_tests(p_values: list[float]) -> None:
    """A hypothesis is as sure as the least sure set that holds it (Bonferroni in each set)."""
    indices = range(len(p_values))
    sets = [s for n in range(1, len(p_values) + 1) for s in itertools.combinations(indices, n)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in indices
    ]
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [[-0.1], [0.5, 1.1], [float("nan")]])
def test_what_is_no_probability_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="lie in"):
        holm(bad)
