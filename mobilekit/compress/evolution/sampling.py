"""Random states with given sums: what a search must beat at equal effort."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mobilekit.core.errors import UsageError
from mobilekit.core.seeds import generator

from .space import Accept, Group, State, check_groups

if TYPE_CHECKING:
    import torch

_TRIES = 1000  # draws for each state that is asked for
_CHUNK = 32  # random bits at a time


def random_states(
    groups: Sequence[Group],
    sums: Sequence[int],
    count: int,
    *,
    seed: int = 0,
    accept: Accept | None = None,
) -> list[State]:
    """Return distinct states, drawn uniformly from all accepted ones with these sums.

    Every state whose levels add up to the sum of each group is as likely as any other: a member's
    level is drawn in proportion to the number of ways in which the members after it can make up
    the rest. What is not accepted, or was drawn before, is drawn again.

    Args:
        groups: The members and their highest levels.
        sums: The sum of the levels of each group.
        count: How many states.
        seed: Seed of every random choice.
        accept: Whether a state is allowed (an exact budget, say).

    Raises:
        UsageError: If a sum cannot be reached, or there are fewer such states.
    """
    check_groups(groups)
    tables, total = _tables(groups, sums), count_states(groups, sums)
    if not 1 <= count <= total:
        raise UsageError(
            f"{count} random states are asked for, {total} have these sums",
            hint=f"Ask for 1 to {total}.",
        )
    stream, seen, found = generator(seed, "evolution.random"), set[State](), list[State]()
    for _ in range(_TRIES * count):
        state = tuple(_draw(table, s, stream) for table, s in zip(tables, sums, strict=True))
        if state not in seen:
            seen.add(state)
            if accept is None or accept(state):
                found.append(state)
        if len(found) == count:
            return found
    raise UsageError(
        f"only {len(found)} of {count} random states were accepted in {_TRIES * count} draws",
        hint="Ask for fewer, or widen the budget's tolerance.",
    )


def count_states(groups: Sequence[Group], sums: Sequence[int]) -> int:
    """Return how many states have these sums.

    Raises:
        UsageError: If a sum cannot be reached.
    """
    tables = _tables(groups, sums)
    return math.prod(table[0][wanted] for table, wanted in zip(tables, sums, strict=True))


def _tables(groups: Sequence[Group], sums: Sequence[int]) -> list[list[list[int]]]:
    if len(sums) != len(groups):
        raise UsageError(
            f"{len(sums)} sums are given for {len(groups)} groups", hint="Give one for each."
        )
    for group, wanted in zip(groups, sums, strict=True):
        if not isinstance(wanted, int) or not 0 <= wanted <= sum(group.most):
            raise UsageError(
                f"the levels of group '{group.name}' cannot add up to {wanted!r}",
                hint=f"Expected: a whole number from 0 to {sum(group.most)}.",
            )
    return [_ways(group.most, wanted) for group, wanted in zip(groups, sums, strict=True)]


def _ways(most: Sequence[int], total: int) -> list[list[int]]:
    """Return ``ways[i][s]``: in how many ways the members from ``i`` on add up to ``s``."""
    ways = [[1] + [0] * total]
    for highest in reversed(most):
        after = ways[0]
        ways.insert(0, [sum(after[max(0, s - highest) : s + 1]) for s in range(total + 1)])
    return ways


def _draw(ways: list[list[int]], rest: int, stream: torch.Generator) -> tuple[int, ...]:
    """Return levels that add up to ``rest``; each choice of levels is equally likely."""
    index, levels = _below(ways[0][rest], stream), []
    for after in ways[1:]:
        level = 0
        while index >= after[rest - level]:
            index -= after[rest - level]
            level += 1
        levels.append(level)
        rest -= level
    return tuple(levels)


def _below(bound: int, stream: torch.Generator) -> int:
    """Return a whole number below a bound that may be larger than any integer of torch."""
    import torch

    bits = (bound - 1).bit_length()
    while True:
        value = 0
        for _ in range(math.ceil(bits / _CHUNK)):
            value = value << _CHUNK | int(torch.randint(1 << _CHUNK, (1,), generator=stream))
        value >>= -bits % _CHUNK
        if value < bound:  # else drawn again: less than every second time
            return value
