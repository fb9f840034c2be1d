"""Bounds for the budgeted choice of levels: what no choice can do better than, and one that can.

With a price λ ≥ 0 on cost instead of a budget, each member decides for itself. The sum of the
members' min(error + λ · cost), less λ · room, is at most the least error within the room (weak
duality), for any λ: so a partial choice that cannot come below a known choice can be dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Member = tuple[NDArray[np.float64], NDArray[np.int64]]  # error and cost of each level

_HALVINGS = 100
_ROUNDING = 1e-9  # of the sum of all errors: far above what float64 loses, and nothing is lost


class Relaxation(NamedTuple):
    """What a partial choice is compared with.

    Attributes:
        price: λ, error a unit of cost.
        rest: For each member, the sum of min(error + λ · cost) over those after it.
        most: Error of a choice within the room, and a little for rounding.
    """

    price: float
    rest: tuple[float, ...]
    most: float


def relax(members: Sequence[Member], room: int) -> Relaxation:
    """Return the bounds at about the price at which the members' own choices fill the room.

    Args:
        members: Error and cost of each level; every member has a level of cost 0.
        room: The most that all may cost together.
    """
    low, high = 0.0, 2.0 * max(float(error.max() - error.min()) for error, _ in members)
    if _cost(members, _choice(members, low)) <= room:
        high = low
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        if _cost(members, _choice(members, price)) <= room:
            high = price
        else:
            low = price
    levels = _choice(members, high)
    _fill(members, levels, room)
    found = sum(float(error[level]) for (error, _), level in zip(members, levels, strict=True))
    scale = sum(float(abs(error).max()) for error, _ in members)
    own = [float((error + high * cost).min()) for error, cost in members]
    rest = tuple(itertools.accumulate(reversed([*own[1:], 0.0])))[::-1]
    return Relaxation(high, rest, found + _ROUNDING * scale)


def _choice(members: Sequence[Member], price: float) -> list[int]:
    """Return what each member chooses at a price; of what is equal to it, the cheapest."""
    import numpy as np

    return [int(np.lexsort((cost, error + price * cost))[0]) for error, cost in members]


def _cost(members: Sequence[Member], levels: Sequence[int]) -> int:
    return sum(int(cost[level]) for (_, cost), level in zip(members, levels, strict=True))


def _fill(members: Sequence[Member], levels: list[int], room: int) -> None:
    """Spend what is left of the room, member after member, on the best level that it buys."""
    import numpy as np

    left = room - _cost(members, levels)
    for index, (error, cost) in enumerate(members):
        affordable = np.flatnonzero(cost <= left + cost[levels[index]])
        best = int(affordable[np.argmin(error[affordable])])
        left += int(cost[levels[index]] - cost[best])
        levels[index] = best
