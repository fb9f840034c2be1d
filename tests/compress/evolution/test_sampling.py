"""Random states: valid, distinct, and every one as likely as any other."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilekit.compress.evolution import Group, State, random_states, sums
from mobilekit.compress.evolution.sampling import _below
from mobilekit.compress.evolution.space import check_state
from mobilekit.core.errors import UsageError
from mobilekit.core.seeds import generator

from .toy import every_state

PAIR = (Group("attention", (2, 3, 1)), Group("mlp", (2, 2)))


@settings(deadline=None, max_examples=50)
@given(
    most=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=2),
    data=st.data(),
)
def test_all_states_are_found_and_no_other(most: list[list[int]], data: st.DataObject) -> None:
    groups = tuple(Group(str(i), tuple(row)) for i, row in enumerate(most))
    wanted = tuple(data.draw(st.integers(0, sum(row))) for row in most)
    every = list(every_state(groups, wanted))
    found = random_states(groups, wanted, len(every), seed=data.draw(st.integers(0, 9)))
    assert len(found) == len(every)
    assert set(found) == set(every)


def test_every_state_is_as_likely_as_any_other() -> None:
    every = list(every_state(PAIR, (3, 2)))
    firsts = Counter(random_states(PAIR, (3, 2), 1, seed=s)[0] for s in range(250 * len(every)))
    assert set(firsts) == set(every)
    chi_square = sum((firsts[state] - 250) ** 2 / 250 for state in every)
    assert len(every) == 18
    assert chi_square < 40.8  # 0.1 % with 17 degrees of freedom


def test_many_members_make_numbers_larger_than_any_word() -> None:
    groups = (Group("attention", (10,) * 40), Group("mlp", (10,) * 40))
    found = random_states(groups, (200, 150), 20, seed=1)
    assert len(set(found)) == 20
    for state in found:
        check_state(state, groups)
        assert sums(state) == (200, 150)
    assert found == random_states(groups, (200, 150), 20, seed=1)
    assert found != random_states(groups, (200, 150), 20, seed=2)


@pytest.mark.parametrize("bound", [1, 2, 3, 1 << 32, (1 << 32) + 1, 10**40])
def test_numbers_stay_below_their_bound(bound: int) -> None:
    stream = generator(0, "below")
    drawn = [_below(bound, stream) for _ in range(200)]
    assert all(0 <= number < bound for number in drawn)
    assert bound == 1 or max(drawn) >= bound // 2


def test_only_accepted_states_are_given() -> None:
    def accept(state: State) -> bool:
        return state[1] == (1, 1)

    found = random_states(PAIR, (3, 2), 6, accept=accept)
    assert set(found) == {state for state in every_state(PAIR, (3, 2)) if accept(state)}


@pytest.mark.parametrize(
    ("wanted", "count", "message"),
    [
        ((3,), 1, "1 sums are given for 2 groups"),
        ((7, 2), 1, "group 'attention' cannot add up to 7"),
        ((-1, 2), 1, "group 'attention' cannot add up to -1"),
        ((3, 1.5), 1, r"group 'mlp' cannot add up to 1\.5"),
        ((3, 2), 19, "19 random states are asked for, 18 have these sums"),
        ((3, 2), 0, "0 random states are asked for"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wanted: Any, count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        random_states(PAIR, wanted, count)


def test_a_budget_that_nothing_meets_ends_in_an_error() -> None:
    with pytest.raises(UsageError, match="only 0 of 1 random states were accepted in 1000 draws"):
        random_states(PAIR, (3, 2), 1, accept=lambda state: False)
