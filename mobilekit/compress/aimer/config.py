"""Settings of AIMER and of the criteria that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from mobilekit.compress.config import CalibratedConfig, VariantInfo
from mobilekit.core.errors import UsageError

Variant = Literal["aimer", "random", "magnitude", "frequency", "seer", "ean", "reap", "man", "msan"]

# what each variant ranks the experts of a layer by, and what it must look at
VARIANTS: dict[Variant, VariantInfo] = {
    "aimer": VariantInfo("none", "keeps the smallest ratio of mean to root-mean-square weight"),
    "random": VariantInfo("none", "keeps a seeded random choice"),
    "magnitude": VariantInfo("none", "keeps the largest mean absolute weight"),
    "frequency": VariantInfo("routing", "keeps the experts with the most tokens"),
    "seer": VariantInfo("routing", "keeps the largest sum of router weights"),
    "ean": VariantInfo("activations", "keeps the largest sum of output norms"),
    "reap": VariantInfo("activations", "keeps the largest mean of router weight × output norm"),
    "man": VariantInfo("activations", "keeps the largest mean output norm"),
    "msan": VariantInfo("activations", "keeps the largest mean squared output norm"),
}
_TEXT = ("calibration_data", "calibration_tokens", "calibration_length")
_CALIBRATION = (*_TEXT, "calibration_batch_size")


class AimerConfig(CalibratedConfig):
    """Settings of expert pruning; those of calibration concern the variants that need data."""

    variants: ClassVar[Mapping[str, VariantInfo]] = VARIANTS  # type: ignore[assignment]

    variant: Variant = Field(
        default="aimer",
        description="What experts are ranked by; `mobilekit methods aimer` lists the criteria.",
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

    @model_validator(mode="after")
    def _calibration_is_used(self) -> Self:
        if not self.needs_data:
            changed = [name for name in _CALIBRATION if not self._is_default(name)]
            if changed:
                raise UsageError(
                    f"'{changed[0]}' has no effect with variant {self.variant}, which needs no "
                    "data",
                    hint=f"Leave it out, or choose one of: {', '.join(data_variants())}.",
                )
        return self

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self, name) == type(self).model_fields[name].default)

    @property
    def needs_data(self) -> bool:
        """Whether the variant runs calibration tokens through the model."""
        return VARIANTS[self.variant].needs != "none"

    @property
    def has_own_text(self) -> bool:
        """Whether a text, or how much of it, was chosen."""
        return not all(self._is_default(name) for name in _TEXT)

    def unused(self, *, is_given_data: bool) -> tuple[str, ...]:
        """Return the settings that have no effect on a plan; token ids replace a text."""
        if not self.needs_data:
            return _CALIBRATION
        return _TEXT if is_given_data else ()


def data_variants() -> tuple[Variant, ...]:
    """Return the variants that run calibration tokens through the model."""
    return tuple(name for name in get_args(Variant) if VARIANTS[name].needs != "none")
