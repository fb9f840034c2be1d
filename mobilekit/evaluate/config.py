"""What a recipe may ask an evaluation for; imports neither torch nor numpy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mobilekit.core.strict import StrictModel

DEFAULT_WINDOW = 256  # tokens; fits the contexts that phones get

__all__ = ["DEFAULT_WINDOW", "MobileMMLUConfig", "PerplexityConfig", "SuiteConfig"]


class PerplexityConfig(StrictModel):
    """Settings of held-out perplexity."""

    suite: Literal["perplexity"] = "perplexity"
    data: str = Field("heldout", description="'heldout' (English of CPython) or a UTF-8 file.")
    max_tokens: int = Field(2048, ge=2, description="Only so many tokens from the text's start.")
    window: int | None = Field(
        None,
        ge=2,
        description="Tokens a window; the smaller of 256 and the context length where null.",
    )


class MobileMMLUConfig(StrictModel):
    """Settings of the four-option questions."""

    suite: Literal["mobile_mmlu"] = "mobile_mmlu"
    data: str = Field(
        "sample",
        description="'sample'; your copy, a folder or CSV file; owner/name of the local hub "
        "cache; hf://owner/name to download it.",
    )
    key: str | None = Field(None, description="CSV question_id,answer; the sample has its own.")
    scorer: Literal["loglik", "generate", "cloze"] = Field(
        "loglik",
        description="Letters by log-likelihood, the official generated letter, or the options' "
        "full texts.",
    )
    rotations: Literal[1, 4, 24] = Field(
        1, description="Orders of the options asked: the file's, 4 cyclic ones, or all 24."
    )
    limit: int | None = Field(None, ge=1, description="So many questions, spread over the fields.")
    seed: int = Field(0, ge=0, description="Which questions a limit picks.")

    @model_validator(mode="after")
    def _orders_are_shown(self) -> MobileMMLUConfig:
        if self.scorer == "cloze" and self.rotations != 1:
            raise ValueError("rotations 1 with scorer 'cloze', whose prompt lists no options")
        return self


SuiteConfig = Annotated[PerplexityConfig | MobileMMLUConfig, Field(discriminator="suite")]
