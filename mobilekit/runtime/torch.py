"""A torch checkpoint as a runtime: the model's own forward and its own cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from mobilekit.models.modules.cache import cache_argument

from .base import Logits, Tokens, check_call, check_span


class TorchRuntime:
    """Interface ``token-logits/1`` over a ``transformers`` decoder LM.

    Args:
        model: The model, in any dtype, on any device.
        context_length: Most positions to accept; the config's own where ``None``.
    """

    name = "torch"
    version = str(torch.__version__)

    def __init__(self, model: nn.Module, context_length: int | None = None) -> None:
        self.model: Any = model.eval()
        config: Any = model.config
        self.vocab_size: int = config.vocab_size
        self.context_length: int = context_length or config.max_position_embeddings
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._cache = DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def forward(self, tokens: Tokens, position: int) -> Logits:
        """Return the logits of the last token, shape (V,), float32."""
        held = int(self._cache.get_seq_length())
        check_call(
            tokens,
            position,
            held=held,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )
        if position < held:
            self._cache.crop(position - held)  # a negative count: so many positions go
        output = self.model(
            input_ids=self._ids(tokens),
            use_cache=True,
            logits_to_keep=1,
            **cache_argument(self.model, self._cache),
        )
        return self._numpy(output.logits[0, -1])

    @torch.inference_mode()
    def full_logits(self, tokens: Tokens) -> Logits:
        """Return the logits of all positions of one sequence, (S,) → (S, V), float32."""
        check_span(len(tokens), 0, self.context_length)
        output = self.model(input_ids=self._ids(tokens), use_cache=False)
        return self._numpy(output.logits[0])

    def _ids(self, tokens: Tokens) -> torch.Tensor:
        ids = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))
        return ids[None].to(self.model.device)

    @staticmethod
    def _numpy(logits: torch.Tensor) -> Logits:
        return logits.float().cpu().numpy()
