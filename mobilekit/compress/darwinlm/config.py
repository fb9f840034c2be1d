"""Settings of DarwinLM and of the allocations that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from mobilekit.compress.config import CalibratedConfig, VariantInfo
from mobilekit.core.errors import UsageError

Variant = Literal[
    "darwin", "evopress", "random", "zip_dp", "uniform", "uniform_wanda", "uniform_magnitude"
]
Score = Literal["obs", "wanda", "magnitude"]
Start = Literal["uniform", "zip_dp"]
GroupMode = Literal["even", "whole", "free"]

VARIANTS: dict[Variant, VariantInfo] = {
    "darwin": VariantInfo("activations", "evolution; candidates are compared after fine-tuning"),
    "evopress": VariantInfo("activations", "evolution without fine-tuning"),
    "random": VariantInfo("activations", "the best of random allocations, at equal effort"),
    "zip_dp": VariantInfo("activations", "the least sum of layer errors, by dynamic programming"),
    "uniform": VariantInfo("activations", "the same level in every layer, repaired by OBS"),
    "uniform_wanda": VariantInfo("activations", "the same level; |weight| × activation, no repair"),
    "uniform_magnitude": VariantInfo("activations", "the same level; squared weights, no repair"),
}
SEARCHES: frozenset[str] = frozenset({"darwin", "evopress", "random"})
_SEARCH_ONLY = (
    "start",
    "offspring",
    "generations",
    "survivors",
    "fitness_tokens",
    "fitness_pool",
    "tolerance",
)
_FINETUNE_ONLY = ("finetune_tokens", "finetune_learning_rate", "finetune_pool")


class DarwinConfig(CalibratedConfig):
    """Settings of structured pruning; the defaults of the search are the published ones."""

    variants: ClassVar[Mapping[str, VariantInfo]] = VARIANTS  # type: ignore[assignment]

    variant: Variant = Field(
        default="darwin",
        description="How levels are chosen; `mobilekit methods darwinlm` lists the ways.",
    )
    sparsity: float = Field(
        default=0.5,
        ge=0.0,
        lt=1.0,
        allow_inf_nan=False,
        description="Share of the query heads and of the MLP channels to remove.",
    )
    levels: int = Field(
        default=11, ge=2, le=257, description="Levels of a layer, from untouched to removed."
    )
    group_mode: GroupMode = Field(
        default="even",
        description="Which heads may go together: 'even' (as many for each key-value head), "
        "'whole' (key-value heads with all their query heads: a smaller cache), 'free' (any).",
    )
    channel_multiple: PositiveInt | None = Field(
        default=None,
        description="Widths are multiples of this, for fast kernels; 32 where levels allow it.",
    )
    remove_blocks: bool = Field(
        default=True, description="Whether the last level removes the whole attention or MLP."
    )
    damping: float = Field(
        default=1e-2,
        gt=0.0,
        allow_inf_nan=False,
        description="Share of the mean diagonal of a Hessian that is added to it.",
    )
    start: Start = Field(
        default="uniform",
        description="Where a search begins: 'uniform' (as published), or 'zip_dp' (by layer "
        "errors, which decide how much attention and MLP lose; a search keeps those shares).",
    )
    offspring: PositiveInt = Field(default=16, description="Candidates a generation.")
    generations: PositiveInt = Field(default=200, description="Generations.")
    survivors: tuple[PositiveInt, ...] = Field(
        default=(8, 4, 2, 1), min_length=1, description="Candidates left after each stage."
    )
    fitness_tokens: tuple[PositiveInt, ...] = Field(
        default=(1024, 2048, 4096, 8192),
        min_length=1,
        description="Tokens that candidates are compared on, a stage.",
    )
    fitness_pool: PositiveInt = Field(
        default=100_000, description="Tokens that those are drawn from."
    )
    finetune_tokens: tuple[PositiveInt, ...] = Field(
        default=(10_000, 50_000, 100_000, 200_000),
        min_length=1,
        description="Tokens that each candidate is fine-tuned on before, a stage.",
    )
    finetune_pool: PositiveInt = Field(
        default=500_000, description="Tokens that those are drawn from."
    )
    finetune_learning_rate: float = Field(
        default=1e-5, gt=0.0, allow_inf_nan=False, description="Of AdamW, without a schedule."
    )
    tolerance: float = Field(
        default=0.01,
        ge=0.0,
        lt=1.0,
        allow_inf_nan=False,
        description="How far the parameters of a candidate may be from the target, as a share of "
        "those that can be removed.",
    )

    @model_validator(mode="after")
    def _settings_are_used(self) -> Self:
        fields = type(self).model_fields
        for name in self.unused():
            if getattr(self, name) != fields[name].default:
                ways = "darwin" if name in _FINETUNE_ONLY else ", ".join(sorted(SEARCHES))
                raise UsageError(
                    f"'{name}' has no effect with variant {self.variant}",
                    hint=f"Leave it out, or choose one of: {ways}.",
                )
        return self

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        stages = len(self.survivors)
        for name in ("fitness_tokens", "finetune_tokens"):
            if name not in self.unused() and len(getattr(self, name)) != stages:
                raise ValueError(f"{stages} entries in {name}, one for each of survivors")
        return self

    @property
    def score(self) -> Score:
        """What units are ranked by."""
        return {"uniform_wanda": "wanda", "uniform_magnitude": "magnitude"}.get(  # type: ignore[return-value]
            self.variant, "obs"
        )

    @property
    def needs_data(self) -> bool:
        """Every variant looks at tokens, but where nothing is removed."""
        return self.sparsity > 0.0

    @property
    def trains(self) -> bool:
        """Whether candidates are fine-tuned."""
        return self.needs_data and self.variant == "darwin"

    def unused(self) -> tuple[str, ...]:
        """Return the settings that have no effect on a plan."""
        unused: tuple[str, ...] = ()
        if self.variant not in SEARCHES:
            unused += _SEARCH_ONLY
        return unused if self.variant == "darwin" else unused + _FINETUNE_ONLY
