"""A small problem whose optimum is known; run as a program, a search that can be killed.

python toy.py FOLDER --seconds 0.01 [--fail-on-rank 1]
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

from mobilekit.compress.evolution import (
    EvolutionResult,
    EvolutionSettings,
    Group,
    State,
    evolve,
    fanned_out,
    place,
    uniform,
)
from mobilekit.core.errors import UsageError
from mobilekit.core.files import atomic_write_json, sha256_json
from mobilekit.train.ranks import launched

GROUPS = (Group("attention", (4, 4, 4)), Group("mlp", (4, 4, 4)))
START = uniform(GROUPS, 2)
SETTINGS = EvolutionSettings(offspring=8, generations=12, survivors=(4, 2, 1), seed=3)

Costs = tuple[tuple[tuple[float, ...], ...], ...]  # by group, member and level


def convex_costs(seed: int) -> Costs:
    """Costs that rise faster and faster with the level, as an OBS error does."""
    draws = random.Random(seed)

    def member(most: int) -> tuple[float, ...]:
        steps = sorted(draws.random() for _ in range(most))
        return (0.0, *itertools.accumulate(steps))

    return tuple(tuple(member(most) for most in group.most) for group in GROUPS)


def total(costs: Costs, state: State) -> float:
    return sum(
        table[level]
        for tables, levels in zip(costs, state, strict=True)
        for table, level in zip(tables, levels, strict=True)
    )


def every_state(groups: tuple[Group, ...], sums: tuple[int, ...]) -> Iterator[State]:
    """All states with these sums, by brute force."""
    choices = [
        [c for c in itertools.product(*(range(most + 1) for most in group.most)) if sum(c) == s]
        for group, s in zip(groups, sums, strict=True)
    ]
    return itertools.product(*choices)


def noise(candidate: State, generation: int, stage: int) -> float:
    """A number in [0, 1) that depends on the arguments alone."""
    digest = sha256_json([candidate, generation, stage])
    return int(digest[:12], 16) / 16**12


def noisy(candidate: State, generation: int, stage: int) -> float:
    """Fitness on little data: the more stages, the less noise."""
    return total(COSTS, candidate) + noise(candidate, generation, stage) / 4**stage


COSTS = convex_costs(0)


def search(path: Path | None, seconds: float = 0.0, fail_on_rank: int = -1) -> EvolutionResult:
    def evaluate(candidate: State, generation: int, stage: int) -> float:
        if place()[0] == fail_on_rank and generation == 2:
            raise UsageError("this rank ran into trouble", hint="Mend it.")
        time.sleep(seconds * noise(candidate, stage, generation))
        return noisy(candidate, generation, stage)

    return evolve(START, GROUPS, fanned_out(evaluate), SETTINGS, state_path=path, identity="toy")


def told(result: EvolutionResult) -> list[object]:
    """All of a result but the time that it took, as JSON values."""
    history = [record.model_dump(mode="json", exclude={"seconds"}) for record in result.history]
    return [[list(levels) for levels in result.state], history]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--fail-on-rank", type=int, default=-1)
    arguments = parser.parse_args()
    with launched("cpu"):
        result = search(arguments.folder / "search.json", arguments.seconds, arguments.fail_on_rank)
        atomic_write_json(arguments.folder / f"rank{place()[0]}.json", told(result))


if __name__ == "__main__":
    main()
