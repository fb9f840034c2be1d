"""Allocation under a budget: as good as trying everything, and never over the budget."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilekit.compress.evolution import allocate, allocation
from mobilekit.core.errors import UsageError

Table = list[list[float]]


def brute_force(errors: Sequence[Any], costs: Sequence[Any], budget: float | Fraction) -> float:
    """The least error of all choices within the budget, in exact sums; infinite where none is."""
    exact = [[Fraction(cost) for cost in row] for row in costs]
    return min(
        (
            math.fsum(row[level] for row, level in zip(errors, levels, strict=True))
            for levels in itertools.product(*(range(len(row)) for row in errors))
            if sum(row[level] for row, level in zip(exact, levels, strict=True)) <= budget
        ),
        default=math.inf,
    )


def tables(number: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Table, Table]]:
    """Errors and costs of 1 to 5 members with 1 to 4 levels."""
    error = st.integers(0, 50).map(float)
    member = st.lists(st.tuples(error, number), min_size=1, max_size=4)
    return st.lists(member, min_size=1, max_size=5).map(
        lambda rows: ([[e for e, _ in row] for row in rows], [[c for _, c in row] for row in rows])
    )


def _within(result: Any, errors: Any, costs: Any, budget: float) -> None:
    chosen = list(enumerate(result.levels))
    assert result.error == math.fsum(errors[i][level] for i, level in chosen)
    assert math.isclose(result.cost, math.fsum(costs[i][level] for i, level in chosen))
    assert result.cost <= budget


@settings(deadline=None, max_examples=200)
@given(problem=tables(st.integers(-20, 5_000_000)), share=st.floats(0, 1.2))
def test_whole_costs_are_allocated_exactly(problem: tuple[Table, Table], share: float) -> None:
    errors, costs = problem
    least, most = sum(map(min, costs)), sum(map(max, costs))
    budget = least + share * (most - least)
    result = allocate(errors, costs, budget)
    _within(result, errors, costs, budget)
    assert result.error == brute_force(errors, costs, budget)
    assert isinstance(result.cost, int)


@settings(deadline=None, max_examples=200)
@given(problem=tables(st.floats(0, 1e3)), share=st.floats(0, 1.2))
def test_other_costs_never_exceed_the_budget_and_come_as_near_as_is_said(
    problem: tuple[Table, Table], share: float
) -> None:
    errors, costs = problem
    least, most = math.fsum(map(min, costs)), math.fsum(map(max, costs))
    budget = least + share * (most - least)
    result = allocate(errors, costs, budget)
    _within(result, errors, costs, budget)
    assert brute_force(errors, costs, math.nextafter(budget, math.inf)) <= result.error
    room = Fraction(budget) - sum(Fraction(min(row)) for row in costs)
    given_away = len(errors) * room / allocation.RESOLUTION
    assert result.error <= brute_force(errors, costs, Fraction(budget) - given_away)


def test_a_budget_that_is_missed_by_less_than_a_step_is_not_exceeded() -> None:
    one = 0.25 * (1 + 1e-8)  # four cost a hundred-millionth more than the budget
    result = allocate([[1.0, 0.0]] * 4, [[0.0, one]] * 4, 1.0)
    assert sum(result.levels) == 3
    assert allocate([[1.0, 0.0]] * 4, [[0.0, 0.25 * (1 - 1e-8)]] * 4, 1.0).error == 0.0


def test_the_order_of_members_does_not_change_how_good_it_is() -> None:
    draws = random.Random(0)
    errors = [[draws.random() for _ in range(8)] for _ in range(20)]
    costs = [[draws.randrange(10**7) for _ in range(8)] for _ in range(20)]
    budget = sum(sum(row) for row in costs) // 8
    forward, backward = (
        allocate(e, c, budget) for e, c in [(errors, costs), (errors[::-1], costs[::-1])]
    )
    assert math.isclose(forward.error, backward.error, rel_tol=1e-12)
    assert max(forward.cost, backward.cost) <= budget


def _dense_table(errors: Table, costs: list[list[int]], budget: int) -> float:
    """The textbook's table: the least error for every whole budget, member after member."""
    best = np.zeros(budget + 1)
    for error, cost in zip(errors, costs, strict=True):
        best = np.min(
            [
                np.r_[np.full(min(c, budget + 1), np.inf), best[: max(0, budget + 1 - c)] + e]
                for e, c in zip(error, cost, strict=True)
            ],
            axis=0,
        )
    return float(best.min())


@pytest.mark.parametrize("seed", range(4))
def test_a_model_of_many_layers_is_allocated_as_by_the_dense_table(seed: int) -> None:
    draws = random.Random(seed)
    errors, costs = [], []
    for size in [7] * 24 + [23] * 24:  # two kinds of layers, eleven levels that shrink them
        errors.append([0.0, *itertools.accumulate(draws.random() ** 3 for _ in range(10))])
        costs.append([size * (10 - level) for level in range(11)])
    budget = sum(row[0] for row in costs) // 2
    scale = 131_072  # parameters a unit
    result = allocate(errors, [[c * scale for c in row] for row in costs], budget * scale)
    assert math.isclose(result.error, _dense_table(errors, costs, budget), rel_tol=1e-12)
    assert result.cost <= budget * scale


def test_a_budget_for_everything_takes_the_least_error_and_of_equals_the_cheaper() -> None:
    result = allocate([[2.0, 1.0, 1.0], [0.0]], [[1, 9, 5], [3]], 10**30)
    assert result == ((2, 0), 1.0, 8)


def test_numbers_of_numpy_are_numbers_too() -> None:
    errors, costs = np.array([[0.0, 1.0], [0.0, 4.0]]), np.array([[10, 2], [10, 2]])
    result = allocate(errors, costs, np.int64(12))  # type: ignore[arg-type]
    assert result == ((1, 0), 1.0, 12)
    assert isinstance(result.cost, int)
    assert allocate(errors, costs.astype(np.float32), 12.5).levels == (1, 0)  # type: ignore[arg-type]


def test_a_budget_that_the_cheapest_levels_just_meet_is_met() -> None:
    errors, costs = [[0.0, 5.0], [0.0, 7.0]], [[0.3, 0.1], [0.9, 0.2]]
    assert allocate(errors, costs, 0.1 + 0.2).levels == (1, 1)


def test_an_infeasible_budget_names_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"a budget of 11 .*\nThe nearest .* is 12\.") as caught:
        allocate([[0.0, 1.0], [0.0, 1.0]], [[9, 5], [9, 7]], 11)
    assert caught.value.exit_code == 2
    assert allocate([[0.0, 1.0], [0.0, 1.0]], [[9, 5], [9, 7]], 12).levels == (1, 1)


@pytest.mark.parametrize(
    ("errors", "costs", "budget", "message"),
    [
        ([], [], 1, "errors are given for 0 members"),
        ([[0.0]], [], 1, "errors are given for 1 members, costs for 0"),
        ([[]], [[]], 1, "member 0 has 0 errors"),
        ([[0.0, 1.0]], [[1]], 1, "member 0 has 2 errors and 1 costs"),
        ([[0.0, math.nan]], [[1, 2]], 1, "level 1 of member 0 has error nan"),
        ([[0.0, 1.0]], [[1, math.inf]], 1, "level 1 of member 0 .* cost inf"),
        ([[0.0]], [[1]], math.nan, "the budget is nan"),
        ([[0.0, 1.0], [0.0, 1.0]], [[1, 0], [2**60, 0]], 2**60, "too large to be told apart"),
    ],
)
def test_tables_that_make_no_sense_are_refused(
    errors: Any, costs: Any, budget: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        allocate(errors, costs, budget)


def test_costs_that_all_differ_end_in_an_error_before_memory_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allocation, "_LARGEST", 100)
    costs = [[0, 1 << member] for member in range(16)]  # every sum is another, and none is worse
    errors = [[float(1 << member), 0.0] for member in range(16)]
    with pytest.raises(UsageError, match=r"too many to compare\nRound the costs"):
        allocate(errors, costs, (1 << 15) + 1)
