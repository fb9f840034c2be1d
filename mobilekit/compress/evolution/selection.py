"""Selection in stages: few data for many candidates, then more for those that are left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mobilekit.core.errors import CheckFailedError, UsageError

from .ranks import EvaluateMany
from .space import State


class Selection(NamedTuple):
    """Who was chosen, and by what.

    Attributes:
        winner: The next parent.
        fitness: Its fitness in the last stage, lower is better.
        parent_fitness: The parent's on the same data; ``None`` where it is not finite.
        evaluations: Candidates that each stage looked at.
    """

    winner: State
    fitness: float
    parent_fitness: float | None
    evaluations: tuple[int, ...]


def select(
    parent: State,
    children: Sequence[State],
    survivors: Sequence[int],
    evaluate: EvaluateMany,
    generation: int,
) -> Selection:
    """Narrow the children down stage by stage; the parent joins the last one.

    What is not finite ranks last. Ties go to the parent, then to the child that was made first.

    Raises:
        CheckFailedError: If nobody in the last stage has a finite fitness.
        UsageError: If ``evaluate`` does not give one fitness for each candidate.
    """
    pool, evaluations = list(children), []
    for stage, count in enumerate(survivors):
        if stage == len(survivors) - 1:
            pool = [parent, *pool]
        fitness = _fitness(evaluate, pool, generation, stage)
        evaluations.append(len(pool))
        best = sorted(range(len(pool)), key=fitness.__getitem__)[:count]  # stable: ties by index
        kept = sorted(best)
        pool, last = [pool[index] for index in kept], [fitness[index] for index in kept]
    if math.isinf(last[0]):
        raise CheckFailedError(
            f"no candidate of generation {generation} has a finite fitness, nor has its parent",
            hint="Look for bad values in the weights or the data, or use a smaller learning rate.",
        )
    own = fitness[0] if math.isfinite(fitness[0]) else None
    return Selection(pool[0], last[0], own, tuple(evaluations))


def _fitness(
    evaluate: EvaluateMany, pool: Sequence[State], generation: int, stage: int
) -> list[float]:
    """Return the fitness of each candidate, infinite where it is not finite."""
    given = evaluate(pool, generation, stage)
    if len(given) != len(pool):
        raise UsageError(
            f"{len(given)} values of fitness came back for {len(pool)} candidates",
            hint="Give one for each candidate, in their order.",
        )
    return [float(value) if math.isfinite(value) else math.inf for value in given]
