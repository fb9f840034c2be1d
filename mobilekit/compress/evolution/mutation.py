"""Offspring of a state: a few switches, each one level down and one level up in the same group."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .space import Accept, Group, State

if TYPE_CHECKING:
    import torch

MOST_FLIPS = 3
_TRIES = 100  # draws for each offspring, before the neighbourhood is gone through in order
_EXAMINED = 20_000  # states of it that are looked at then


def draw_flips(generator: torch.Generator) -> int:
    """Return how many switches an offspring gets: 1, 2, 3 with probability 5/9, 3/9, 1/9.

    Source: DarwinLM, min(U{1, 2, 3}, U{1, 2, 3}).
    """
    return 1 + min(below(MOST_FLIPS, generator), below(MOST_FLIPS, generator))


def draw_group(groups: Sequence[Group], generator: torch.Generator) -> int:
    """Return the index of a group, drawn with a probability proportional to its size."""
    member = below(sum(len(group.most) for group in groups), generator)
    ends = itertools.accumulate(len(group.most) for group in groups)
    return next(index for index, end in enumerate(ends) if member < end)


def mutate(parent: State, groups: Sequence[Group], generator: torch.Generator) -> State:
    """Return a state a few random switches away, or the parent where they cancel out.

    Args:
        parent: A state that passes ``check_state`` and ``check_switches``.
        groups: What its levels belong to.
        generator: Source of every random choice.

    Source: DarwinLM. The member that goes down and the one that goes up are drawn independently
    among those that can, so that they may be the same: a switch that does nothing.
    """
    levels = [list(group) for group in parent]
    for _ in range(draw_flips(generator)):
        index = draw_group(groups, generator)
        chosen, most = levels[index], groups[index].most
        can_fall, can_rise = _movable(chosen, most)
        falls = can_fall[below(len(can_fall), generator)]
        rises = can_rise[below(len(can_rise), generator)]
        chosen[falls] -= 1
        chosen[rises] += 1
    return tuple(map(tuple, levels))


def offspring(
    parent: State,
    groups: Sequence[Group],
    count: int,
    generator: torch.Generator,
    *,
    accept: Accept | None = None,
) -> list[State]:
    """Return distinct accepted mutants of a parent, none of them the parent, as they were drawn.

    Where drawing finds too few, the neighbourhood is gone through from near to far, up to 20,000
    states of it. So in a small space every neighbour is found, and a narrow budget is searched
    with method; fewer than ``count`` come back only where that finds no more either.

    Args:
        parent: A state that passes ``check_state`` and ``check_switches``.
        groups: What its levels belong to.
        count: How many are wanted.
        generator: Source of every random choice.
        accept: Whether a state is allowed; called once for each distinct state.
    """
    seen, found = {parent}, list[State]()
    for _ in range(_TRIES * count):
        if len(found) == count:
            return found
        child = mutate(parent, groups, generator)
        if child not in seen:
            seen.add(child)
            if accept is None or accept(child):
                found.append(child)
    near = itertools.islice(neighbours(parent, groups), _EXAMINED)
    rest = [s for s in near if s not in seen and (accept is None or accept(s))]
    return found + [rest[i] for i in _shuffled(len(rest), generator)[: count - len(found)]]


def neighbours(parent: State, groups: Sequence[Group]) -> Iterator[State]:
    """Yield each state that a mutation can reach once, those of fewer switches first."""
    seen, edge = {parent}, [parent]
    for _ in range(MOST_FLIPS):
        farther = []
        for state in edge:
            for other in _one_switch_away(state, groups):
                if other not in seen:
                    seen.add(other)
                    farther.append(other)
                    yield other
        edge = farther


def below(bound: int, generator: torch.Generator) -> int:
    """Return a whole number from 0 up to, not including, ``bound``."""
    import torch

    return int(torch.randint(bound, (1,), generator=generator))


def _one_switch_away(state: State, groups: Sequence[Group]) -> Iterator[State]:
    for index, (chosen, group) in enumerate(zip(state, groups, strict=True)):
        can_fall, can_rise = _movable(chosen, group.most)
        for falls, rises in itertools.product(can_fall, can_rise):
            if falls != rises:
                levels = list(chosen)
                levels[falls] -= 1
                levels[rises] += 1
                yield (*state[:index], tuple(levels), *state[index + 1 :])


def _movable(levels: Sequence[int], most: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the members that can go one level down, and those that can go one level up."""
    can_fall = [i for i, level in enumerate(levels) if level > 0]
    can_rise = [i for i, level in enumerate(levels) if level < most[i]]
    return can_fall, can_rise


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    import torch

    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
