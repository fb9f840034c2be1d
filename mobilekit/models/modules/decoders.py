"""A decoder-only language model with a key-value cache, in three forms for capture.

One wrapper a form of state (see ``StateForm``). All call the real model with an explicit 4-D mask
and explicit positions, so that nothing in it depends on the data, and return the logits of the
last position only: nothing else is needed to generate, and a large vocabulary is costly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .cache import DelegatedCache, Update, cache_argument

_MASKED = -1e4  # representable in fp16, and far below any attention score


class DecoderProgram(nn.Module):
    """Common ground of the three forms: the model and the shape of its cache.

    Args:
        model: A ``transformers`` decoder LM in eval mode.
        context_length: Positions that the cache holds, T.
    """

    def __init__(self, model: nn.Module, context_length: int) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self.context_length = context_length
        self.num_layers: int = config.num_hidden_layers
        self.vocab_size: int = config.vocab_size
        heads: int = config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        self.cache_shape = (1, heads, context_length, head_dim)  # (B, H, T, Dh)

    def logits(self, tokens: Tensor, positions: Tensor, mask: Tensor, update: Update) -> Tensor:
        """Return the last position's logits, shape (1, 1, V)."""
        output = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **cache_argument(self.model, DelegatedCache(update)),
        )
        return output.logits  # type: ignore[no-any-return]

    def _register_cache(self) -> None:
        dtype = next(self.model.parameters()).dtype
        for layer in range(self.num_layers):
            for name in (f"k{layer}", f"v{layer}"):
                self.register_buffer(name, torch.zeros(self.cache_shape, dtype=dtype))

    def reset(self) -> None:
        """Set every cache buffer to zero."""
        for buffer in self.buffers(recurse=False):
            if buffer.shape == torch.Size(self.cache_shape):
                buffer.zero_()


class ResidentDecoder(DecoderProgram):
    """Cache in buffers, written by index: ``forward(tokens (1, S), input_pos (1,))``."""

    def __init__(self, model: nn.Module, context_length: int) -> None:
        super().__init__(model, context_length)
        self._register_cache()

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Return the last position's logits, shape (1, 1, V)."""
        positions = input_pos + torch.arange(tokens.shape[1], device=tokens.device)  # (S,)
        slots = torch.arange(self.context_length, device=tokens.device)
        mask = (slots[None, :] <= positions[:, None])[None, None]  # (1, 1, S, T)

        def update(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return self.write(layer, positions, key, value)

        return self.logits(tokens, positions[None], mask, update)

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
        causal = slots[None, :] <= rows[:, None]  # (S, P + S)
        mask = (causal[None] & (attention_mask[:, None, :] != 0))[:, None]  # (1, 1, S, P + S)
        present: list[Tensor] = []

        def update(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            keys = torch.cat([past[2 * layer], key], dim=2)
            values = torch.cat([past[2 * layer + 1], value], dim=2)
            present.extend((keys, values))
            return keys, values

        return self.logits(input_ids, position_ids, mask, update), present


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
        visible = slots[None, :] <= positions[:, None]
        # additive, (1, 1, S, T); torch.where would leave two constants of that size in the file
        mask = ((visible.to(torch.float32) - 1.0) * -_MASKED)[None, None]
        written = (slots[None, :] == positions[:, None]).to(mask.dtype)  # (S, T), one-hot rows
        kept = 1.0 - written.sum(dim=0)[None, None, :, None]  # (1, 1, T, 1)

        def update(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = getattr(self, f"k{layer}"), getattr(self, f"v{layer}")
            keys.mul_(kept).add_(torch.matmul(written.T, key))  # (T, S) @ (1, H, S, Dh)
            values.mul_(kept).add_(torch.matmul(written.T, value))
            return keys, values

        return self.logits(input_ids, positions[None], mask, update)
