"""An embedding whose rows are scaled: an ordinary table, which is quantized like any other."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ScaledEmbedding(nn.Module):
    """Look rows up, then multiply them.

    Args:
        source: The model's own scaled embedding; its weight is shared, not copied.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        rows, width = source.weight.shape
        self.table = nn.Embedding(rows, width, device="meta")
        self.table.weight = source.weight
        self.scale = float(source.scalar_embed_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scaled rows of ``tokens`` (B, S), shape (B, S, D)."""
        return self.table(tokens) * self.scale  # type: ignore[no-any-return]
