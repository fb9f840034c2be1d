"""Settings of the search, strict and typed."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from mobilekit.core.errors import UsageError
from mobilekit.core.strict import StrictModel


class EvolutionSettings(StrictModel):
    """How many candidates there are, and how they are narrowed down to one."""

    offspring: int = Field(default=16, ge=1, description="Candidates in a generation.")
    generations: int = Field(default=200, ge=1, description="How often a parent is chosen.")
    survivors: tuple[int, ...] = Field(
        default=(8, 4, 2, 1),
        min_length=1,
        description="Candidates left after each selection stage; the last one is the next parent.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of every random choice.")

    @model_validator(mode="after")
    def _stages_narrow_down(self) -> Self:
        counts, shown = self.survivors, list(self.survivors)
        if counts[-1] != 1:
            raise UsageError(
                f"'survivors' is {shown}: {counts[-1]} are left after the last stage",
                hint="Expected: the last count is 1, since one candidate is the next parent.",
            )
        if any(later >= earlier for earlier, later in zip(counts, counts[1:], strict=False)):
            raise UsageError(
                f"'survivors' is {shown}: a stage that removes nobody",
                hint="Expected: counts that descend, such as [8, 4, 2, 1].",
            )
        if counts[0] > self.offspring:
            raise UsageError(
                f"'survivors' begins with {counts[0]}, but 'offspring' is {self.offspring}",
                hint="Let no more survive the first stage than there are candidates.",
            )
        return self

    @property
    def evaluations(self) -> tuple[int, ...]:
        """How many candidates each stage of a generation looks at; the parent joins the last."""
        pools = (self.offspring, *self.survivors[:-1])
        return (*pools[:-1], pools[-1] + 1)
