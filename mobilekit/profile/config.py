"""What a recipe says about profiling."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from mobilekit.core.errors import UsageError
from mobilekit.core.strict import StrictModel
from mobilekit.core.suggest import did_you_mean

from .devices import DEVICES
from .workloads import parse_all


class ProfileConfig(StrictModel):
    """Settings of the profiling step."""

    devices: tuple[str, ...] = Field(("host",), min_length=1, description="Where to measure.")
    workloads: tuple[str, ...] = Field(
        ("pp128", "tg64"), description="ppN (prompt), tgN (generation) or ppN+tgM."
    )
    repetitions: int = Field(5, ge=1, le=10_000, description="Timed repetitions a workload.")
    warmup: int = Field(3, ge=0, le=10_000, description="Untimed repetitions before them.")
    threads: int | None = Field(
        None, ge=1, le=1024, description="Compute threads; the runtime's own choice where null."
    )

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        parse_all(self.workloads)
        known = DEVICES.names()
        for name in self.devices:
            if name not in known:
                raise UsageError(
                    f"unknown device '{name}'{did_you_mean(name, known)}",
                    hint=f"Known devices: {', '.join(known)}.",
                )
        return self
