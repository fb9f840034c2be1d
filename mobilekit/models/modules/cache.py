"""The seam to transformers' key-value cache: what a program gives a model in its place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

Update = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


class DelegatedCache(Cache):
    """A cache that owns no memory: each layer's new states go to the program.

    Args:
        update: Takes (layer, new keys, new values), each (B, H, S, Dh), and returns the keys and
            values that the layer attends to.
    """

    def __init__(self, update: Update) -> None:
        self.layers = []
        self._update = update

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand the new states over, and return all that the layer attends to."""
        return self._update(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are always explicit."""
        return 0


def cache_argument(module: nn.Module, cache: object) -> dict[str, Any]:
    """Return ``cache`` under the name that the module's forward takes it by.

    transformers 5.24 renamed ``past_key_values``, and Mamba's ``cache_params``, to ``cache``.
    """
    taken = inspect.signature(module.forward).parameters
    name = next(n for n in ("cache", "past_key_values", "cache_params") if n in taken)
    return {name: cache}
