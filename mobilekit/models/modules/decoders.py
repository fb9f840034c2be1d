"""A decoder-only language model with a key-value cache, in three forms for capture.

One wrapper a form of state (see ``StateForm``). All call the real model with an explicit 4-D mask
and explicit positions, so that nothing in it depends on the data, and return the logits of the
last position only: nothing else is needed to generate, and a large vocabulary is costly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from .attention import MASKED, attention_windows, key_value_heads
from .cache import DelegatedCache, Update, cache_argument
from .removed import has_attention, is_empty

Visible = Callable[[int | None], Tensor]  # window (None: full attention) -> mask (1, 1, S, T)


class DecoderProgram(nn.Module):
    """Common ground of the three forms: the model, the shapes of its cache, its masks.

    A layer with a sliding window has a cache of the whole context like any other: its mask hides
    what lies before the window. That costs memory, and lets every form go back to any position.
    A layer without attention has no cache: the others' are numbered one after the other.

    Args:
        model: A ``transformers`` decoder LM in eval mode, private to the program.
        context_length: Positions that the cache holds, T.
    """

    def __init__(self, model: nn.Module, context_length: int) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self.context_length = context_length
        self.vocab_size: int = config.vocab_size
        layers: Any = model.get_submodule("model.layers")
        self.layer_indices = tuple(i for i, layer in enumerate(layers) if not is_empty(layer))
        attentions = [layer.self_attn for layer in layers if has_attention(layer)]
        for slot, attention in enumerate(attentions):
            attention.layer_idx = slot  # under which it asks for its cache
        self.cache_shapes = tuple(  # (B, H, T, Dh), attention by attention
            (1, key_value_heads(attention), context_length, int(attention.head_dim))
            for attention in attentions
        )
        self.windows = attention_windows(model)

    def logits(self, tokens: Tensor, positions: Tensor, visible: Visible, update: Update) -> Tensor:
        """Return the last position's logits, shape (1, 1, V)."""
        masks = {kind: visible(window) for kind, window in self.windows.items()}
        output = self.model(
            input_ids=tokens,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **cache_argument(self.model, DelegatedCache(update)),
        )
        return output.logits  # type: ignore[no-any-return]

    def _register_cache(self) -> None:
        dtype = next(self.model.parameters()).dtype
        for layer, shape in enumerate(self.cache_shapes):
            for name in (f"k{layer}", f"v{layer}"):
                self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    def reset(self) -> None:
        """Set every cache buffer to zero."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()


def _bounds(slots: Tensor, positions: Tensor, window: int | None) -> list[Tensor]:
    """Return the conditions, each (S, T) bool, under all of which a token sees a slot.

    Args:
        slots: Positions of the cache's slots, (T,).
        positions: Positions of the tokens, (S,).
        window: How many positions a token sees, itself included; all before it where ``None``.
    """
    bounds = [slots[None, :] <= positions[:, None]]
    if window is not None:
        bounds.append(slots[None, :] > positions[:, None] - window)
    return bounds


def _visible(slots: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Return which slots each token sees, (S, T) bool."""
    return reduce(torch.logical_and, _bounds(slots, positions, window))


class ResidentDecoder(DecoderProgram):
    """Cache in buffers, written by index: ``forward(tokens (1, S), input_pos (1,))``."""

    def __init__(self, model: nn.Module, context_length: int) -> None:
        super().__init__(model, context_length)
        self._register_cache()

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Return the last position's logits, shape (1, 1, V)."""
        positions = input_pos + torch.arange(tokens.shape[1], device=tokens.device)  # (S,)
        slots = torch.arange(self.context_length, device=tokens.device)

        def visible(window: int | None) -> Tensor:
            return _visible(slots, positions, window)[None, None]

        def update(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return self.write(layer, positions, key, value)

        return self.logits(tokens, positions[None], visible, update)

    def write(
        self, layer: int, positions: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's new states at ``positions`` (S,); return all that it attends to."""
        keys, values = getattr(self, f"k{layer}"), getattr(self, f"v{layer}")
        keys.index_copy_(2, positions, key)
        values.index_copy_(2, positions, value)
        return keys, values


class ExplicitDecoder(DecoderProgram):
    """Cache as inputs and outputs, grown by concatenation.

    ``forward(input_ids (1, S), attention_mask (1, P + S), position_ids (1, S), past)`` where
    ``past`` is [k0, v0, k1, v1, …], each (1, H, P, Dh); returns (logits, [k0, v0, …]).
    """

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the last position's logits, shape (1, 1, V), and the grown cache."""
        length, total = input_ids.shape[1], attention_mask.shape[1]
        slots = torch.arange(total, device=input_ids.device)
        rows = torch.arange(length, device=input_ids.device) + (total - length)
        present: list[Tensor] = []

        def visible(window: int | None) -> Tensor:
            seen = _visible(slots, rows, window)  # (S, P + S)
            return (seen[None] & (attention_mask[:, None, :] != 0))[:, None]

        def update(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            keys = torch.cat([past[2 * layer], key], dim=2)
            values = torch.cat([past[2 * layer + 1], value], dim=2)
            present.extend((keys, values))
            return keys, values

        return self.logits(input_ids, position_ids, visible, update), present


class ArithmeticDecoder(DecoderProgram):
    """Cache in buffers, written by in-place arithmetic, since Core ML states have no indexing.

    ``forward(input_ids (1, S) int32, input_pos (1,) int32)``, S fixed at capture.
    """

    def __init__(self, model: nn.Module, context_length: int) -> None:
        super().__init__(model, context_length)
        self._register_cache()

    def forward(self, input_ids: Tensor, input_pos: Tensor) -> Tensor:
        """Return the last position's logits, shape (1, 1, V)."""
        offsets = torch.arange(input_ids.shape[1], dtype=torch.int32, device=input_ids.device)
        positions = input_pos + offsets  # (S,)
        slots = torch.arange(self.context_length, dtype=torch.int32, device=input_ids.device)
        written = (slots[None, :] == positions[:, None]).to(torch.float32)  # (S, T), one-hot rows
        kept = 1.0 - written.sum(dim=0)[None, None, :, None]  # (1, 1, T, 1)

        def visible(window: int | None) -> Tensor:
            # additive; torch.where would leave two constants of that size in the file
            bounds = [bound.to(torch.float32) for bound in _bounds(slots, positions, window)]
            return ((reduce(torch.mul, bounds) - 1.0) * MASKED)[None, None]

        def update(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = getattr(self, f"k{layer}"), getattr(self, f"v{layer}")
            keys.mul_(kept).add_(torch.matmul(written.T, key))  # (T, S) @ (1, H, S, Dh)
            values.mul_(kept).add_(torch.matmul(written.T, value))
            return keys, values

        return self.logits(input_ids, positions[None], visible, update)
