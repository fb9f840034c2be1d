"""A torch checkpoint as a runtime: the model's own forward, over a cache that can go back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from mobilekit.models.families import family_of
from mobilekit.models.modules.cache import cache_argument

from .base import Cursor, Logits, Tokens, check_span
from .batches import batched_logits

_ENDLESS = 1 << 20  # positions to offer where the model sets no bound


class TorchRuntime:
    """Interface ``token-logits/1`` over a ``transformers`` decoder LM.

    Args:
        model: The model, in any dtype, on any device.
        context_length: Most positions to accept; the config's own where ``None``, and 2^20 for a
            model whose running state has no length.
    """

    name = "torch"
    version = str(torch.__version__)

    def __init__(self, model: nn.Module, context_length: int | None = None) -> None:
        self.model: Any = model.eval()
        config: Any = model.config
        self.vocab_size: int = config.vocab_size
        most = getattr(config, "max_position_embeddings", _ENDLESS)
        self.context_length: int = context_length or most
        self.cursor = Cursor(
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            is_recurrent=family_of(model).is_recurrent,
        )
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.cursor.reset()
        self._empty_cache()

    def _empty_cache(self) -> None:
        # without a config every layer keeps all positions, since a window cannot be gone back from
        self._cache = DynamicCache(config=self.model.config if self.cursor.is_recurrent else None)

    @torch.inference_mode()
    def forward(self, tokens: Tokens, position: int) -> Logits:
        """Return the logits of the last token, shape (V,), float32."""
        with self.cursor.call(tokens, position):
            self._go_back_to(position)
            output = self.model(
                input_ids=self._ids(tokens),
                use_cache=True,
                logits_to_keep=1,
                **cache_argument(self.model, self._cache),
            )
        return self._numpy(output.logits[0, -1])

    def _go_back_to(self, position: int) -> None:
        if position == 0:
            self._empty_cache()
        elif not self.cursor.is_recurrent:  # which can only go on
            layers: Any = self._cache.layers
            for layer in layers:  # of several lengths, after a call that failed
                if (excess := layer.get_seq_length() - position) > 0:
                    layer.crop(-excess)  # a negative count: so many positions go

    @torch.inference_mode()
    def full_logits(self, tokens: Tokens) -> Logits:
        """Return the logits of all positions of one sequence, (S,) → (S, V), float32."""
        check_span(len(tokens), 0, self.context_length)
        output = self.model(input_ids=self._ids(tokens), use_cache=False)
        return self._numpy(output.logits[0])

    def batched_logits(self, prompts: Sequence[Tokens]) -> Iterator[tuple[int, Logits]]:
        """Yield (index, logits (V,), float32) of each prompt's last token, many in one pass."""
        return batched_logits(self.model, prompts)

    def _ids(self, tokens: Tokens) -> torch.Tensor:
        ids = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))
        return ids[None].to(self.model.device)

    @staticmethod
    def _numpy(logits: torch.Tensor) -> Logits:
        return logits.float().cpu().numpy()
