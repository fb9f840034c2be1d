"""An export program run eagerly: what an artifact of the same precision is held to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .base import Cursor, Logits, Tokens


class ProgramModule(Protocol):
    """What the wrapped module must be able to do (``ResidentDecoder``, quantized or not).

    One that has a module with a true ``is_recurrent`` in it keeps a running state.
    """

    def __call__(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Take tokens (1, S) and input_pos (1,), int64; give the last logits, (1, 1, V)."""

    def reset(self) -> None:
        """Set the cache to zero."""

    def modules(self) -> Iterator[nn.Module]:
        """Give the module itself and all that are in it."""


class EagerProgram:
    """Interface ``token-logits/1`` over an export program that keeps its own cache.

    Args:
        module: ``forward(tokens (1, S) int64, input_pos (1,) int64)`` → logits (1, 1, V), and
            ``reset()``.
        context_length: Positions that its cache holds.
        vocab_size: V.
        name: Name of the reference: "eager-fp32", or "eager-int8" for a quantized module.
    """

    version = str(torch.__version__)

    def __init__(
        self,
        module: ProgramModule,
        *,
        context_length: int,
        vocab_size: int,
        name: str = "eager-fp32",
    ) -> None:
        self.module = module
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.name = name
        is_recurrent = any(getattr(m, "is_recurrent", False) for m in module.modules())
        self.cursor = Cursor(
            vocab_size=vocab_size, context_length=context_length, is_recurrent=is_recurrent
        )
        self.reset()

    @torch.no_grad()  # not inference mode: the buffers must stay usable outside of it
    def reset(self) -> None:
        """Forget everything."""
        self.module.reset()
        self.cursor.reset()

    @torch.no_grad()
    def forward(self, tokens: Tokens, position: int) -> Logits:
        """Return the logits of the last token, shape (V,), float32."""
        with self.cursor.call(tokens, position):
            ids = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))[None]
            logits = self.module(ids, torch.tensor([position]))
        return logits[0, -1].float().numpy()
