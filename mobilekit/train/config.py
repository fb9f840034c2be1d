"""What a recipe may ask recovery training for; imports neither torch nor numpy."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mobilekit.core.strict import StrictModel

__all__ = ["EMBEDDED", "RecoverConfig"]

EMBEDDED = "embedded"  # stands for the English text that ships with CPython
_MOST_WARMUP = 50  # steps, where none are asked for


class RecoverConfig(StrictModel):
    """Settings of recovery training."""

    objective: tuple[Literal["next_token", "distill"], ...] = Field(
        ("next_token", "distill"),
        min_length=1,
        description="What the student learns from: the text, the dense model, or both.",
    )
    data: str | tuple[str, ...] = Field(
        EMBEDDED,
        description="'embedded' (English of CPython), UTF-8 text files, or one token file (.npy; "
        "`mobilekit tokens` writes one).",
    )
    heldout: str | tuple[str, ...] | None = Field(
        None,
        description="The same, for the loss before and after; the last tenth of data where null.",
    )
    document_separator: bool = Field(
        True, description="End-of-text token between two text files, where the tokenizer has one."
    )
    tokens: int = Field(2_000_000, ge=1, description="Training tokens, rounded up to a batch.")
    optimizer: Literal["adamw"] = Field("adamw", description="The optimizer.")
    learning_rate: float = Field(
        5e-4, gt=0.0, description="Peak learning rate; it falls along a cosine to a twentieth."
    )
    warmup: int | None = Field(
        None,
        ge=0,
        description="Steps over which the learning rate rises; a tenth, at most 50, where null.",
    )
    weight_decay: float = Field(0.1, ge=0.0, description="Of matrices; norms and biases have none.")
    max_gradient_norm: float = Field(
        1.0, gt=0.0, description="Longer gradients, all parameters taken together, are shortened."
    )
    batch_size: int = Field(8, ge=1, description="Sequences in a batch, that is in a step.")
    gradient_accumulation: int = Field(
        1,
        ge=1,
        description="Parts that a batch is cut into to save memory; the result is the same.",
    )
    sequence_length: int = Field(256, ge=2, description="Tokens in a sequence.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="What products are computed in; weights and sums are float32."
    )
    temperature: float = Field(1.0, gt=0.0, description="Softens both models in distillation.")
    distill_weight: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of distillation where both objectives are used."
    )
    balance_weight: float = Field(
        0.01, ge=0.0, description="Weight of the loss that keeps a router's experts in use."
    )
    checkpoint_every: int = Field(
        100, ge=1, description="Steps between saved states, and at most three minutes."
    )
    keep_better: bool = Field(
        True, description="Keep the weights as they were where training did not lower the loss."
    )
    seed: int = Field(0, ge=0, description="Seed of the batches.")

    @field_validator("data", "heldout", mode="before")
    @classmethod
    def _names(cls, value: object, info: ValidationInfo) -> object:
        entries = value if isinstance(value, tuple) else (value,)
        may_lack = value is None and info.field_name == "heldout"
        if not may_lack and not (entries and all(isinstance(e, str) and e for e in entries)):
            raise ValueError("the name of a file, or a list of names")
        return value

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if len(set(self.objective)) != len(self.objective):
            raise ValueError("each objective once")
        if self.batch_size % self.gradient_accumulation:
            raise ValueError("a batch_size that gradient_accumulation divides")
        if self.warmup is not None and self.warmup > self.steps:
            raise ValueError(f"a warmup of at most the {self.steps} steps that the tokens come to")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps that ``tokens`` come to."""
        return math.ceil(self.tokens / (self.batch_size * self.sequence_length))

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return min(_MOST_WARMUP, self.steps // 10) if self.warmup is None else self.warmup

    def files(self) -> tuple[str, ...]:
        """Return the paths of the user's files that training reads."""
        return tuple(path for names in (self.data, self.heldout) for path in _paths(names))


def _paths(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the file names of a setting: none for the embedded text."""
    if names is None or names == EMBEDDED:
        return ()
    return (names,) if isinstance(names, str) else names
