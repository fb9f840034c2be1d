"""Attention of a layer that has lost more query heads of one key-value head than of another.

transformers takes query head q to read key-value head q // (H / Hk), which holds where every
key-value head has as many. Elsewhere the queries are spread over as many slots a key-value head as
the fullest one has, any attention function runs on that, and what the empty slots gave is dropped.
So no key or value is copied, the cache stays as it is, and no kernel has to know.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

UNEVEN = "mobilekit_uneven_heads"  # name of `uneven_attention` in transformers' interface


class LayerConfig:
    """A model's config as one of its layers sees it: some values are the layer's own.

    All else is read from the shared config, and what is set is set there.

    Args:
        shared: The model's config.
        own: The values that differ.
    """

    def __init__(self, shared: Any, **own: Any) -> None:
        self.__dict__.update(shared=shared, own=own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying asks for these before there is anything to ask
            raise AttributeError(name)
        own = self.__dict__["own"]
        return own[name] if name in own else getattr(self.__dict__["shared"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["shared"], name, value)


class HeadSlots(nn.Module):
    """Where the query heads of a layer stand among equally many slots a key-value head.

    Args:
        kv_index: For each query head the key-value head that it reads, ascending; length H.
        num_key_value_heads: How many key-value heads there are, Hk.
        device: Where the index tensors are.
    """

    taken: Tensor
    filled_by: Tensor

    def __init__(
        self, kv_index: Sequence[int], num_key_value_heads: int, device: torch.device
    ) -> None:
        super().__init__()
        self.kv_index = tuple(kv_index)
        counts = [self.kv_index.count(head) for head in range(num_key_value_heads)]
        self.per_group = max(counts)
        firsts = [sum(counts[:group]) for group in range(num_key_value_heads)]
        # an empty slot repeats some query, whose result is dropped
        self._filled_by = [
            firsts[group] + slot if slot < counts[group] else 0
            for group in range(num_key_value_heads)
            for slot in range(self.per_group)
        ]
        self._taken = [
            group * self.per_group + head - firsts[group]
            for head, group in enumerate(self.kv_index)
        ]
        self.rebuild_(device)

    def rebuild_(self, device: torch.device) -> None:
        """Make the index tensors anew, which no checkpoint holds."""
        for name in ("taken", "filled_by"):
            index = torch.tensor(getattr(self, f"_{name}"), dtype=torch.int64, device=device)
            self.register_buffer(name, index, persistent=False)

    def spread(self, query: Tensor) -> Tensor:
        """Return queries (B, H, S, Dh) in slots, (B, Hk · slots, S, Dh)."""
        return query.index_select(1, self.filled_by)

    def take(self, slots: Tensor, dim: int) -> Tensor:
        """Return what the heads have of a tensor with slots along ``dim``."""
        return slots.index_select(dim, self.taken)


def uneven_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend by the function that the model's config names, in slots.

    Args:
        module: The attention module, with ``head_slots`` and a :class:`LayerConfig`.
        query: Shape (B, H, S, Dh).
        key: Keys of Hk heads, in whatever layout the function takes them.
        value: Values, likewise.
        attention_mask: As the function takes it; the same for all heads.
        options: Whatever else the function takes.

    Returns:
        The output, shape (B, S, H, Dh), and the weights (B, H, S, T) where the function has any.
    """
    slots, view = module.head_slots, module.config
    eager = sys.modules[type(module).__module__].eager_attention_forward
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(view.shared._attn_implementation, eager)
    module.config = view.shared  # the function may read its own name there
    try:
        output, weights = attend(module, slots.spread(query), key, value, attention_mask, **options)
    finally:
        module.config = view
    return slots.take(output, 2), None if weights is None else slots.take(weights, 1)


def arrange_heads_(
    attention: Any, kv_index: Sequence[int], num_key_value_heads: int, *, reads_counts: bool
) -> None:
    """Let an attention, its projections cut already, work with the query heads that it has.

    Where every key-value head has as many of them it is the stock module again.

    Args:
        attention: The module.
        kv_index: For each query head the key-value head that it reads, ascending.
        num_key_value_heads: How many key-value heads it has.
        reads_counts: Whether its forward reads the number of heads from the config.
    """
    own: dict[str, Any] = {"num_attention_heads": len(kv_index)} if reads_counts else {}
    per_group = len(kv_index) // num_key_value_heads
    attention._modules.pop("head_slots", None)
    if list(kv_index) != stock_index(num_key_value_heads, per_group):
        device = attention.o_proj.weight.device
        attention.head_slots = HeadSlots(kv_index, num_key_value_heads, device)
        per_group = attention.head_slots.per_group
        own["_attn_implementation"] = UNEVEN
    attention.num_key_value_groups = per_group
    shared = shared_config(attention)
    attention.config = LayerConfig(shared, **own) if own else shared


def stock_index(num_key_value_heads: int, per_group: int) -> list[int]:
    """Return which key-value head each query head reads in a stock module."""
    return [head for head in range(num_key_value_heads) for _ in range(per_group)]


def kept_index(attention: Any) -> tuple[int, ...] | None:
    """Return which key-value head each query head reads; ``None`` for a stock module."""
    slots = getattr(attention, "head_slots", None)
    return None if slots is None else slots.kv_index


def shared_config(attention: Any) -> Any:
    """Return the config of the model that an attention belongs to."""
    config = attention.config
    return config.shared if isinstance(config, LayerConfig) else config


def rebuild_slots_(model: nn.Module) -> None:
    """Make every index tensor of a model anew, on the device of its weights."""
    module: Any
    for module in model.modules():
        if getattr(module, "head_slots", None) is not None:
            module.head_slots.rebuild_(module.o_proj.weight.device)


AttentionInterface.register(UNEVEN, uneven_attention)
