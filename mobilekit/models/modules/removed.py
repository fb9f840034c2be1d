"""What stands where a sub-block of a decoder layer was: it adds nothing to the residual stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .cache import DelegatedCache


class Nothing:
    """What a removed sub-block adds: a stream plus nothing is the stream itself.

    No operator runs for it, and a captured graph has none for it. Norms that are identities and
    factors of the residual leave it as it is.
    """

    def __radd__(self, stream: Tensor) -> Tensor:
        return stream

    def __mul__(self, _factor: object) -> Nothing:
        return self

    __rmul__ = __mul__


NOTHING = Nothing()


def _nothing(hidden_states: Tensor) -> Tensor | Nothing:
    """Return what adds nothing to a stream: a zero for TorchDynamo, which adds tensors only."""
    return hidden_states.new_zeros(1) if torch.compiler.is_dynamo_compiling() else NOTHING


class RemovedMLP(nn.Module):
    """An MLP that is gone."""

    def forward(self, hidden_states: Tensor) -> Tensor | Nothing:
        """Add nothing to the stream that hidden states, (B, S, D), come from."""
        return _nothing(hidden_states)


class RemovedAttention(nn.Module):
    """An attention that is gone.

    transformers reads how long a sequence is, and how long its masks are, off the first layer of
    each kind in the cache. So this leaves one number a position there, in the layer's own place:
    lengths, windows, crops and beams stay true whatever the cache is. A program, which owns its
    cache and knows its positions, gets no such mark.

    Args:
        layer_idx: Index of its layer.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, **options: Any) -> tuple[Tensor | Nothing, None]:
        """Add nothing, hidden states being (B, S, D); there are no attention weights."""
        # transformers 5.24 renamed it
        cache = options.get("cache", options.get("past_key_values"))
        if cache is not None and not isinstance(cache, DelegatedCache):
            batch, length = hidden_states.shape[:2]
            mark = hidden_states.new_zeros(batch, 1, length, 1)
            cache.update(mark, mark, self.layer_idx)
        return _nothing(hidden_states), None


def has_attention(layer: Any) -> bool:
    """Tell whether a decoder layer still has its attention."""
    return not isinstance(layer.self_attn, RemovedAttention)


def is_empty(layer: Any) -> bool:
    """Tell whether nothing of a decoder layer is left."""
    parts = [part for part in layer.children() if not isinstance(part, nn.Identity)]
    return all(isinstance(part, RemovedAttention | RemovedMLP) for part in parts)
