"""Accuracies that others published on a question set: facts to look at, measured by no run."""

from __future__ import annotations

from pydantic import Field

from mobilekit.core.strict import StrictModel


class PublishedAccuracy(StrictModel):
    """One model's figure, as its source gives it."""

    model: str
    group: str = Field(description="What its source calls models like it: 'mobile', 'general'.")
    accuracy: float = Field(ge=0, le=1)


class PublishedFigures(StrictModel):
    """What others published on one set; never beside what a run measured on it."""

    dataset: str = Field(description="The set, as results name it.")
    questions: int = Field(ge=1, description="Of the whole set.")
    protocol: str = Field(description="How the figures came about, as far as that is known.")
    source: str
    models: tuple[PublishedAccuracy, ...] = ()
    reason: str | None = Field(None, description="Why there are none.")
