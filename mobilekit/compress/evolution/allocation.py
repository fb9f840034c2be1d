"""One level for each member, of least total error within a budget: exact dynamic programming.

Members are taken one after another, and of all partial choices only those are kept that no other
one beats in both cost and error (the Pareto front). So the size of the numbers does not matter:
costs may be millions of parameters, where a table with an entry a unit of cost would not fit.
Source: ZipLM's choice of levels under a budget; the front instead of its table is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

from mobilekit.core.errors import UsageError

from .relaxation import Relaxation, relax

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .relaxation import Member

RESOLUTION = 1 << 20  # steps into which the room for costs that are no whole numbers is cut
_LARGEST = 20_000_000  # partial choices at once: about 1 GB


class Allocation(NamedTuple):
    """A choice of levels.

    Attributes:
        levels: Level of each member.
        error: Sum of their errors.
        cost: Sum of their costs; a whole number where all costs are.
    """

    levels: tuple[int, ...]
    error: float
    cost: float


def allocate(
    errors: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float
) -> Allocation:
    """Return the levels of least total error whose total cost is within the budget.

    With whole costs (parameters, ns) the choice is exact. Other costs (a latency in ms) are
    rounded up to 2**20 steps of what the budget leaves above the cheapest choice. So the budget
    is never exceeded, and the error is at most the least one for a budget that is smaller by that
    part of the room for each member: 64 members give away at most 0.006 % of the room.

    Args:
        errors: Error of each level of each member, finite.
        costs: Cost of each level of each member, finite, in the unit of ``budget``. Neither need
            rise or fall with the level.
        budget: The most that all members may cost together, inclusive.

    Raises:
        UsageError: If even the cheapest choice is over the budget, the tables do not fit one
            another, or the costs differ so finely that the choices cannot be kept apart.
    """
    import numpy as np

    _check(errors, costs, budget)
    excess, room = _excess(costs, budget)
    members = [
        (np.array(e, dtype=np.float64), np.array(c, dtype=np.int64))
        for e, c in zip(errors, excess, strict=True)
    ]
    levels = _best(members, room, relax(members, room))
    return Allocation(
        levels,
        math.fsum(row[level] for row, level in zip(errors, levels, strict=True)),
        _total([row[level] for row, level in zip(costs, levels, strict=True)]),
    )


def _excess(costs: Sequence[Sequence[float]], budget: float) -> tuple[list[list[int]], int]:
    """Return each cost above the member's cheapest, and the room for them, in whole steps."""
    exact = [[Fraction(_plain(cost)) for cost in row] for row in costs]
    cheapest = [min(row) for row in exact]
    least = _total([min(row) for row in costs])
    if least > budget:
        raise UsageError(
            f"a budget of {budget} cannot be reached: the cheapest levels cost {least}",
            hint=f"The nearest budget that can be reached is {least}.",
        )
    # the exact sum may lie above its nearest float by less than a rounding
    room = max(Fraction(_plain(budget)) - sum(cheapest), Fraction(0))
    is_whole = all(cost.denominator == 1 for row in exact for cost in row)
    # a room of 0 leaves the cheapest levels alone: any step tells them from the others
    unit = Fraction(1) if is_whole else room / RESOLUTION or Fraction(1, 10**400)
    steps = [
        [math.ceil((cost - low) / unit) for cost in row]
        for row, low in zip(exact, cheapest, strict=True)
    ]
    return _reduced(steps, math.floor(room / unit))


def _reduced(steps: list[list[int]], room: int) -> tuple[list[list[int]], int]:
    """Return the same in the largest common unit; what never fits costs just over the room."""
    fitting = [step for row in steps for step in row if step <= room]
    unit = math.gcd(*fitting) or 1
    room = min(room // unit, sum(max(s for s in row if s <= room) for row in steps) // unit)
    if room >= 1 << 53:
        raise UsageError(
            "the costs are too large to be told apart", hint="Give them in a larger unit."
        )
    return [[min(-(-step // unit), room + 1) for step in row] for row in steps], room


def _best(members: Sequence[Member], room: int, bound: Relaxation) -> tuple[int, ...]:
    """Return the level of each member, by one pass over the members and one back."""
    import numpy as np

    cost, error = np.zeros(1, dtype=np.int64), np.zeros(1)
    choices = []
    for (own_error, own_cost), rest in zip(members, bound.rest, strict=True):
        if len(cost) * len(own_cost) > _LARGEST:
            raise UsageError(
                f"more than {_LARGEST} choices of levels differ in cost: too many to compare",
                hint="Round the costs, so that more choices cost the same.",
            )
        cost = (cost[:, None] + own_cost).ravel()
        error = (error[:, None] + own_error).ravel()
        hopeful = error + rest - bound.price * (room - cost) <= bound.most
        kept = _front(cost, error, np.flatnonzero((cost <= room) & hopeful))
        choices.append(np.divmod(kept, len(own_cost)))
        cost, error = cost[kept], error[kept]
    point, levels = len(cost) - 1, []  # the last point of a front has the least error
    for before, level in reversed(choices):
        levels.append(int(level[point]))
        point = int(before[point])
    return tuple(reversed(levels))


def _front(
    cost: NDArray[np.int64], error: NDArray[np.float64], among: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the indices of what nothing beats: by rising cost, each of less error."""
    import numpy as np

    order = among[np.lexsort((error[among], cost[among]))]  # stable: ties go to the lower index
    least = np.minimum.accumulate(error[order])
    return order[np.flatnonzero(np.r_[True, error[order][1:] < least[:-1]])]


def _check(
    errors: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float
) -> None:
    if not math.isfinite(budget):
        raise UsageError(f"the budget is {budget}", hint="Give a finite number.")
    if not len(errors) or len(errors) != len(costs):
        raise UsageError(
            f"errors are given for {len(errors)} members, costs for {len(costs)}",
            hint="Give both for each member, and at least one member.",
        )
    for member, (error, cost) in enumerate(zip(errors, costs, strict=True)):
        if not len(error) or len(error) != len(cost):
            raise UsageError(
                f"member {member} has {len(error)} errors and {len(cost)} costs",
                hint="Give one of each for each of its levels, and at least one level.",
            )
        for level, (one, other) in enumerate(zip(error, cost, strict=True)):
            if not (math.isfinite(one) and math.isfinite(other)):
                raise UsageError(
                    f"level {level} of member {member} has error {one} and cost {other}",
                    hint="Both must be finite; leave out a level that cannot be chosen.",
                )


def _plain(value: float) -> int | float:
    return int(value) if isinstance(value, Integral) else float(value)


def _total(costs: Sequence[float]) -> int | float:
    plain = [_plain(cost) for cost in costs]
    return sum(plain) if all(isinstance(cost, int) for cost in plain) else math.fsum(plain)
