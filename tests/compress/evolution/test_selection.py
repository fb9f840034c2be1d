"""Selection in stages: the parent joins the last one, ties and bad values rank as they should."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from mobilekit.compress.evolution import State
from mobilekit.compress.evolution.selection import select
from mobilekit.core.errors import CheckFailedError, UsageError

PARENT: State = ((0,),)
CHILDREN: list[State] = [((i,),) for i in range(1, 9)]


class Table:
    """Fitness by candidate and stage, and a note of who was asked."""

    def __init__(self, *stages: dict[int, float]) -> None:
        self.stages, self.asked = stages, list[list[int]]()

    def __call__(self, candidates: Sequence[State], generation: int, stage: int) -> list[float]:
        assert generation == 7
        members = [candidate[0][0] for candidate in candidates]
        self.asked.append(members)
        return [self.stages[stage].get(member, 9.0) for member in members]


def test_each_stage_asks_for_those_that_are_left_and_the_last_for_the_parent_too() -> None:
    table = Table({2: 1, 5: 2, 6: 0, 8: 3}, {2: 5, 5: 1, 6: 2, 8: 6}, {0: 4, 5: 3, 6: 2})
    chosen = select(PARENT, CHILDREN, (4, 2, 1), table, 7)
    assert table.asked == [[1, 2, 3, 4, 5, 6, 7, 8], [2, 5, 6, 8], [0, 5, 6]]
    assert chosen == (((6,),), 2.0, 4.0, (8, 4, 3))


def test_the_parent_survives_if_nobody_is_better() -> None:
    table = Table({}, {0: 1.0, 1: 1.0, 2: 1.5})
    assert select(PARENT, CHILDREN, (2, 1), table, 7).winner == PARENT


def test_ties_go_to_who_was_made_first_also_after_a_stage_in_which_it_was_worse() -> None:
    table = Table({1: 3, 2: 1, 3: 2}, {0: 5, 1: 1, 2: 1, 3: 1})
    assert select(PARENT, CHILDREN, (3, 1), table, 7).winner == ((1,),)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_ranks_last(bad: float) -> None:
    table = Table({1: bad, 2: 8, 3: bad, 4: 7}, {0: bad, 2: 1e30, 4: bad})
    chosen = select(PARENT, CHILDREN[:4], (2, 1), table, 7)
    assert table.asked[1] == [0, 2, 4]
    assert chosen == (((2,),), 1e30, None, (4, 3))


def test_nobody_finite_at_the_end_is_an_error() -> None:
    with pytest.raises(CheckFailedError, match="no candidate of generation 7"):
        select(PARENT, CHILDREN, (1,), Table(dict.fromkeys(range(9), math.nan)), 7)


def test_a_missing_fitness_is_an_error() -> None:
    with pytest.raises(UsageError, match="1 values of fitness came back for 9 candidates"):
        select(PARENT, CHILDREN, (1,), lambda candidates, generation, stage: [0.0], 7)


def test_fewer_children_than_survivors_all_go_on() -> None:
    table = Table({}, {}, {0: 2, 1: 1})
    assert select(PARENT, CHILDREN[:1], (4, 2, 1), table, 7).evaluations == (1, 1, 2)
