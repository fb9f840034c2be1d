"""Settings of AIMER."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mobilekit.compress.config import MethodConfig

Variant = Literal["aimer", "random", "magnitude"]


class AimerConfig(MethodConfig):
    """Settings of data-free expert pruning."""

    variant: Variant = Field(
        default="aimer",
        description="Criterion: aimer, or one of the baselines random and magnitude.",
    )
    sparsity: float = Field(
        default=0.25,
        ge=0.0,
        lt=1.0,
        allow_inf_nan=False,
        description="Fraction of all routed experts to remove; every layer loses the same number.",
    )
    clip: bool = Field(
        default=False,
        description="Remove as many as the router's top-k allows, with a warning, where the "
        "sparsity asks for more; otherwise that is an error.",
    )
