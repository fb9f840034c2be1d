"""Groups and states: what is refused, and when nothing can be switched."""

from __future__ import annotations

from typing import Any

import pytest

from mobilekit.compress.evolution import Group, sums, uniform
from mobilekit.compress.evolution.space import check_groups, check_state, check_switches
from mobilekit.core.errors import UsageError

PAIR = (Group("attention", (4, 4)), Group("mlp", (3, 3, 3)))


def test_uniform_puts_every_member_at_the_level() -> None:
    state = uniform(PAIR, 2)
    assert state == ((2, 2), (2, 2, 2))
    assert sums(state) == (4, 6)


@pytest.mark.parametrize("level", [4, -1, 1.5, 2.0, True, "2", None])
def test_a_target_that_is_no_level_of_every_member_is_refused(level: Any) -> None:
    with pytest.raises(UsageError, match=r"is not one of its levels\n.*whole number from 0 to"):
        uniform(PAIR, level)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((), "there is no group"),
        ((Group("mlp", ()),), "group 'mlp' has no member"),
        ((Group("mlp", (2, 2)), Group("mlp", (2, 2))), "two groups are called 'mlp'"),
        ((Group("mlp", (2, -1)),), "member 1 of group 'mlp' is -1"),
        ((Group("mlp", (2, 1.5)),), r"member 1 of group 'mlp' is 1\.5"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_groups(groups)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (((2, 2),), "levels for 1 groups, there are 2"),
        (((2, 2), (2, 2)), "2 levels for group 'mlp' of 3 members"),
        (((2, 5), (2, 2, 2)), "level 5 of member 1 of group 'attention'"),
        (((2, 2), (2, -1, 2)), "level -1 of member 1 of group 'mlp'"),
        (((2, 2), (2, 0.5, 2)), r"level 0\.5 of member 1 of group 'mlp'"),
    ],
)
def test_states_that_do_not_fit_are_refused(state: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_state(state, PAIR)


@pytest.mark.parametrize(
    ("most", "levels", "message"),
    [
        ((4,), (2,), "has 1 member with more than one level"),
        ((4, 0), (2, 0), "has 1 member with more than one level"),
        ((0, 0), (0, 0), "has 0 members with more than one level"),
        ((4, 4), (0, 0), "at its lowest level"),
        ((4, 3), (4, 3), "at its highest level"),
    ],
)
def test_a_group_in_which_nothing_can_be_switched_is_refused(
    most: tuple[int, ...], levels: tuple[int, ...], message: str
) -> None:
    groups = (PAIR[1], Group("attention", most))
    with pytest.raises(UsageError, match=f"group 'attention'.*{message}"):
        check_switches(((1, 1, 1), levels), groups)


@pytest.mark.parametrize("levels", [(4, 0), (0, 4), (4, 3), (1, 0)])
def test_a_group_with_room_can_always_switch(levels: tuple[int, ...]) -> None:
    check_switches((levels,), (Group("attention", (4, 4)),))
