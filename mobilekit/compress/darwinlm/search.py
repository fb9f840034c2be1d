"""The variants: one level for every layer, chosen by rule, by layer errors, or by evolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mobilekit.compress.evolution import (
    Accept,
    EvolutionSettings,
    GenerationRecord,
    Group,
    State,
    allocate,
    count_states,
    evolve,
    fanned_out,
    random_states,
    sums,
)
from mobilekit.core import console
from mobilekit.core.errors import UsageError
from mobilekit.core.files import sha256_bytes, sha256_json
from mobilekit.core.seeds import generator
from mobilekit.train.finetune import finetune

from .config import SEARCHES, DarwinConfig
from .fitness import Teacher, drawn, rows_of
from .grid import Grid, uniform_levels
from .stitch import as_state, choice, groups, stitched

if TYPE_CHECKING:
    from torch import nn

    from .database import Database


@dataclass
class Found:
    """What a search came to.

    Attributes:
        state: The levels.
        generations: One record a generation, for the plan.
    """

    state: State
    generations: list[dict[str, Any]] = field(default_factory=list)


class Search:
    """Everything that choosing levels needs.

    Args:
        model: The dense model, in evaluation mode.
        grids: Its layers' levels.
        database: The layers at these levels.
        config: The settings.
        pools: Token ids, shape (N, S): what candidates are compared on, and fine-tuned on.
        costs: Parameters of every layer at every level.
        state_path: Where a search keeps its state.
    """

    def __init__(
        self,
        model: nn.Module,
        grids: Sequence[Grid],
        database: Database,
        config: DarwinConfig,
        pools: tuple[Tensor, Tensor],
        costs: list[list[int]],
        state_path: Path | None = None,
    ) -> None:
        self._model, self._grids, self._database = model, list(grids), database
        self._config, self._costs, self._state_path = config, costs, state_path
        self._fitness_pool, self._train_pool = pools
        self._teachers: dict[tuple[int, int], Teacher] = {}

    def run(self) -> Found:
        """Choose the levels by the variant."""
        variant, start = self._config.variant, self.uniform()
        if variant == "zip_dp" or (variant in SEARCHES and self._config.start == "zip_dp"):
            start = self._least_error(self._parameters(start))
        if variant == "random":
            return self._best_of_random(start)
        return self._evolved(start) if variant in SEARCHES else Found(start)

    def uniform(self) -> State:
        """Return the start: every kind of unit at the target, as even as levels allow.

        Raises:
            UsageError: If nothing would go, more than the levels have, or all attention.
        """
        sparsity = self._config.sparsity
        kinds = [[g for g in self._grids if g.unit == k.name] for k in groups(self._grids)]
        start = tuple(uniform_levels(kind, sparsity) for kind in kinds)
        if not any(map(sum, start)):
            raise UsageError(
                f"a sparsity of {sparsity:g} is less than half a level of one layer",
                hint="Ask for more, or for more levels.",
            )
        self._check_attention(start)
        return start

    def _check_attention(self, state: State) -> None:
        if not attends(self._grids, state):
            raise UsageError(
                f"a sparsity of {self._config.sparsity:g} would leave no layer any attention",
                hint="Choose a smaller one, more levels, or remove_blocks=false.",
            )

    def _parameters(self, state: State) -> int:
        flat = [level for group in state for level in group]
        return sum(row[level] for row, level in zip(self._costs, flat, strict=True))

    def _accept(self, start: State) -> Accept:
        target = self._parameters(start)
        slack = self._config.tolerance * sum(row[0] for row in self._costs)

        def accept(state: State) -> bool:
            near = abs(self._parameters(state) - target) <= slack
            return near and attends(self._grids, state)

        return accept

    def _least_error(self, budget: int) -> State:
        errors = [self._database.entry(grid).relative() for grid in self._grids]
        state = as_state(allocate(errors, self._costs, budget).levels, self._grids)
        self._check_attention(state)
        return state

    def _evolved(self, start: State) -> Found:
        config = self._config
        settings = EvolutionSettings(
            offspring=config.offspring,
            generations=config.generations,
            survivors=config.survivors,
            seed=config.seed,
        )
        every = groups(self._grids)
        free = [i for i, group in enumerate(every) if _can_switch(group, start[i])]
        if not free:
            raise UsageError(
                "no two layers can exchange a level, so there is nothing to search",
                hint="Use variant=uniform, more levels, or another sparsity.",
            )

        def whole(state: State) -> State:
            found = list(start)
            for place, levels in zip(free, state, strict=True):
                found[place] = levels
            return tuple(found)

        accept = self._accept(start)
        outcome = evolve(
            tuple(start[i] for i in free),
            [every[i] for i in free],
            fanned_out(lambda state, *at: self.fitness(whole(state), *at)),
            settings,
            accept=lambda state: accept(whole(state)),
            state_path=self._state_path,
            identity=self._identity(),
        )
        return Found(whole(outcome.state), [self._record(entry) for entry in outcome.history])

    def fitness(self, state: State, generation_: int, stage: int) -> float:
        """Return a candidate's divergence from the dense model, after fine-tuning where asked.

        Data depends on generation and stage alone, so all candidates of a stage see the same.
        """
        training = self._config.variant == "darwin"
        candidate = stitched(
            self._model, choice(self._grids, state), self._database, trainable=training
        )
        if training:
            name = f"darwinlm.finetune.{generation_}.{stage}"
            rows = drawn(
                self._train_pool,
                self._config.finetune_tokens[stage],
                generator(self._config.seed, name),
            )
            finetune(candidate, list(rows[:, None]), self._config.finetune_learning_rate)
            candidate.eval()
        return self._teacher(generation_, stage).divergence(candidate)

    def _teacher(self, generation_: int, stage: int) -> Teacher:
        key = (generation_, stage)
        if key not in self._teachers:
            name = f"darwinlm.fitness.{generation_}.{stage}"
            tokens = self._config.fitness_tokens[stage]
            rows = drawn(self._fitness_pool, tokens, generator(self._config.seed, name))
            self._teachers = {key: Teacher(self._model, rows)}  # the stage before is over
        return self._teachers[key]

    def _best_of_random(self, start: State) -> Found:
        """Compare as many random allocations as the search's fitness tokens would allow."""
        config = self._config
        last = len(config.survivors) - 1
        tokens = config.generations * self.tokens()["fitness"]
        wanted = max(1, tokens // config.fitness_tokens[last])
        every = groups(self._grids)
        count = min(wanted, count_states(every, sums(start)))
        accept = self._accept(start)
        drawn_states = random_states(every, sums(start), count, seed=config.seed)
        states = [state for state in drawn_states if accept(state)]
        if not states:
            raise UsageError(
                f"none of {count} random allocations comes near enough to the target",
                hint="Widen the tolerance, or use more levels.",
            )
        values: list[float] = []
        compared = fanned_out(self.fitness)
        with console.progress(len(states), "random allocations", announce=True) as bar:
            for first in range(0, len(states), config.offspring):
                some = states[first : first + config.offspring]
                values += compared(some, 0, last)
                bar.advance(len(some), f"best {min(values):.4f}")
        return Found(states[values.index(min(values))])

    def tokens(self) -> dict[str, int]:
        """Return the tokens of one generation, by the closed form of the paper's schedule."""
        config, stages = self._config, range(len(self._config.survivors))
        pool = [config.offspring, *config.survivors[:-1]]
        last = stages[-1]
        seen = [pool[s] + (s == last) for s in stages]  # the parent joins in the last stage
        train = (
            sum(
                count * _tokens(self._train_pool, config.finetune_tokens[s])
                for s, count in enumerate(seen)
            )
            if config.variant == "darwin"
            else 0
        )
        fitness = sum(
            count * _tokens(self._fitness_pool, config.fitness_tokens[s])
            for s, count in enumerate(seen)
        )
        return {"train": train, "fitness": fitness}

    def _record(self, entry: GenerationRecord) -> dict[str, Any]:
        """Return what the plan keeps of a generation."""
        return {
            "generation": entry.generation,
            "fitness": entry.fitness,
            "parent": entry.parent_fitness,
            "tokens": self.tokens(),
        }

    def _identity(self) -> str:
        """Return a hash of all that a search starts from, so that no other one is continued."""
        entries = [self._database.entry(grid).sha256 for grid in self._grids]
        pools = [
            sha256_bytes(pool.numpy().tobytes()) for pool in (self._fitness_pool, self._train_pool)
        ]
        return sha256_json([self._config.model_dump(mode="json"), entries, pools])


def _can_switch(group: Group, levels: Sequence[int]) -> bool:
    """Tell whether a member of a group can go down while another goes up."""
    movable = sum(most > 0 for most in group.most)
    return movable > 1 and 0 < sum(levels) < sum(group.most)


def attends(grids: Sequence[Grid], state: State) -> bool:
    """Tell whether a layer with attention is left: without one, no token would see another."""
    levels = [level for group in state for level in group]
    return any(
        grid.block == "attention" and grid.removed[level] < grid.count
        for grid, level in zip(grids, levels, strict=True)
    )


def _tokens(pool: Tensor, wanted: int) -> int:
    """Return how many tokens a draw from a pool has."""
    return min(len(pool), rows_of(pool, wanted)) * pool.shape[1]
