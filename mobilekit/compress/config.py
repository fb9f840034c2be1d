"""What the settings of every compression method have in common."""

from __future__ import annotations

from pydantic import Field

from mobilekit.core.strict import StrictModel


class MethodConfig(StrictModel):
    """Base of a method's settings: frozen, unknown keys refused with did-you-mean."""

    seed: int = Field(default=0, ge=0, description="Seed of every random choice of the method.")
