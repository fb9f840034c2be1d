"""What is searched: one level for each member of each group, with a fixed sum a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mobilekit.core.errors import UsageError

State = tuple[tuple[int, ...], ...]  # the level of each member, group by group
Accept = Callable[[State], bool]  # tells whether a state is allowed: within a budget, say


@dataclass(frozen=True)
class Group:
    """Members that pass levels on to one another; they never do so across groups.

    Attributes:
        name: What the members are, for messages ("attention").
        most: Highest level of each member; 0 is the lowest and leaves a member untouched.
    """

    name: str
    most: tuple[int, ...]


def uniform(groups: Sequence[Group], level: int) -> State:
    """Return the state with every member at ``level``.

    Raises:
        UsageError: If the level is no whole number, or higher than one that a member has.
    """
    state = tuple((level,) * len(group.most) for group in groups)
    check_state(state, groups)
    return state


def sums(state: State) -> tuple[int, ...]:
    """Return the sum of the levels of each group, which a switch leaves as it is."""
    return tuple(sum(levels) for levels in state)


def check_groups(groups: Sequence[Group]) -> None:
    """Check that there are groups, of distinct names, each with members and whole levels.

    Raises:
        UsageError: With the group that is wrong.
    """
    if not groups:
        raise UsageError("there is no group to search", hint="Give at least one group of members.")
    names = [group.name for group in groups]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UsageError(f"two groups are called '{repeated}'", hint="Give each its own name.")
    for group in groups:
        if not group.most:
            raise UsageError(f"group '{group.name}' has no member", hint="Leave this group out.")
        for member, most in enumerate(group.most):
            if not _is_whole(most) or most < 0:
                raise UsageError(
                    f"the highest level of member {member} of group '{group.name}' is {most!r}",
                    hint="Expected: a whole number, 0 or more.",
                )


def check_state(state: State, groups: Sequence[Group]) -> None:
    """Check that a state has one level for each member, whole and within its range.

    Raises:
        UsageError: With the first level that is wrong.
    """
    check_groups(groups)
    if len(state) != len(groups):
        raise UsageError(
            f"the state has levels for {len(state)} groups, there are {len(groups)}",
            hint="Give one tuple of levels for each group, in the same order.",
        )
    for levels, group in zip(state, groups, strict=True):
        if len(levels) != len(group.most):
            raise UsageError(
                f"{len(levels)} levels for group '{group.name}' of {len(group.most)} members",
                hint="Give one level for each member.",
            )
        for member, (level, most) in enumerate(zip(levels, group.most, strict=True)):
            if not _is_whole(level) or not 0 <= level <= most:
                raise UsageError(
                    f"level {level!r} of member {member} of group '{group.name}' is not one of "
                    f"its levels",
                    hint=f"Expected: a whole number from 0 to {most}.",
                )


def check_switches(state: State, groups: Sequence[Group]) -> None:
    """Check that in every group one member can go down while another goes up.

    Where the sum leaves room and two members have levels at all, that stays so for ever: it is
    a matter of the sum, which no switch changes.

    Raises:
        UsageError: With the group whose levels cannot change.
    """
    for total, group in zip(sums(state), groups, strict=True):
        movable = sum(most > 0 for most in group.most)
        if movable < 2:
            raise UsageError(
                f"group '{group.name}' has {movable} member{'s' * (movable != 1)} with more than "
                "one level: nothing to switch",
                hint="Leave this group out of the search, or put it together with another.",
            )
        if total in (0, sum(group.most)):
            bound = "lowest" if total == 0 else "highest"
            raise UsageError(
                f"every member of group '{group.name}' is at its {bound} level: nothing to switch",
                hint="Choose a target between the bounds, or leave this group out of the search.",
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
