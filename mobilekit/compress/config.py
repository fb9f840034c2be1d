"""What the settings of every compression method have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from mobilekit.core.strict import StrictModel

Needs = Literal["none", "routing", "activations"]
EMBEDDED_TEXT = "embedded"  # stands for the English text that ships with CPython


class VariantInfo(NamedTuple):
    """What one variant of a method needs besides weights, and what it does."""

    needs: Needs  # of calibration: nothing, which expert got which token, or outputs as well
    summary: str


class MethodConfig(StrictModel):
    """Base of a method's settings: frozen, unknown keys refused with did-you-mean.

    Attributes:
        variants: What the values of the field ``variant`` stand for, where there is one.
    """

    variants: ClassVar[Mapping[str, VariantInfo]] = {}

    seed: int = Field(default=0, ge=0, description="Seed of every random choice of the method.")

    @property
    def needs_data(self) -> bool:
        """Whether planning looks at tokens: those that are given, or else those of a text."""
        return False

    @property
    def trains(self) -> bool:
        """Whether planning trains a copy of the model."""
        return False

    def files(self) -> tuple[str, ...]:
        """Return the paths of the user's text files that planning reads."""
        return ()


class CalibratedConfig(MethodConfig):
    """Base of the settings of a method that may look at text."""

    calibration_data: str = Field(
        default=EMBEDDED_TEXT,
        min_length=1,
        description="Text to look at: 'embedded' (English of CPython's documentation, which ships) "
        "or a UTF-8 file; text like what the model is for is better.",
    )
    calibration_tokens: int = Field(
        default=65_536, ge=1, description="Tokens to look at, rounded up to whole sequences."
    )
    calibration_length: int = Field(default=256, ge=2, description="Tokens in a sequence.")
    calibration_batch_size: int = Field(
        default=8, ge=1, description="Sequences at once: speed and memory, not the result."
    )

    def files(self) -> tuple[str, ...]:
        """Return the user's text file, where there is one."""
        own = self.needs_data and self.calibration_data != EMBEDDED_TEXT
        return (self.calibration_data,) if own else ()
