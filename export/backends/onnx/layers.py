"""Layers in few-bit blocks, with two faces: an operator at capture, its arithmetic in eager.

Artifact and reference are made of the same modules, so they hold the same codes and scales. Inside
``torch.onnx.export`` a layer leaves as one contrib operator; everywhere else it computes what that
operator's kernel does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .scheme import ACCURACY_LEVEL, BlockWeight, round_activations

CONTRIB = "com.microsoft"


class _BlockLayer(nn.Module):
    """Holds a weight in blocks; the float copy that eager computes with is made when asked."""

    codes: Tensor
    scales: Tensor

    def __init__(self, stored: BlockWeight) -> None:
        super().__init__()
        self.stored = stored
        self.register_buffer("codes", stored.codes)
        self.register_buffer("scales", stored.scales)
        self._float: Tensor | None = None

    def weight(self) -> Tensor:
        """Return the weight read back, (N, K) float32."""
        if self._float is None:
            self._float = self.stored.dequantize()
        return self._float


class BlockLinear(_BlockLayer):
    """``MatMulNBits`` at accuracy level 4.

    Args:
        stored: The weight, N output rows.
        bias: (N,) float32 or ``None``.
    """

    bias: Tensor | None

    def __init__(self, stored: BlockWeight, bias: Tensor | None) -> None:
        super().__init__(stored)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the product with activations rounded to int8, row by row and block by block."""
        if torch.onnx.is_in_onnx_export():
            return self._emit(hidden_states)
        rounded = round_activations(hidden_states, self.stored.block)
        return F.linear(rounded, self.weight(), self.bias)

    def _emit(self, hidden_states: Tensor) -> Tensor:
        inputs = [hidden_states, self.codes, self.scales.float()]
        if self.bias is not None:
            inputs += [None, None, self.bias]  # type: ignore[list-item]
        rows = self.codes.shape[0]
        return torch.onnx.ops.symbolic(
            f"{CONTRIB}::MatMulNBits",
            inputs,
            {
                "K": self.stored.depth,
                "N": rows,
                "bits": self.stored.bits,
                "block_size": self.stored.block,
                "accuracy_level": ACCURACY_LEVEL,
            },
            dtype=hidden_states.dtype,
            shape=[*hidden_states.shape[:-1], rows],
            version=1,
        )


class BlockEmbedding(_BlockLayer):
    """``GatherBlockQuantized`` on codes in the layout of ``MatMulNBits``, which a tied head shares.

    Args:
        stored: The table, one row a token.
        scale: What rows are multiplied by (Gemma); 1 elsewhere.
    """

    def __init__(self, stored: BlockWeight, scale: float = 1.0) -> None:
        super().__init__(stored)
        self.scale = scale

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the rows of ``input_ids`` (1, S), shape (1, S, K) float32."""
        if torch.onnx.is_in_onnx_export():
            rows = self._emit(input_ids)
        else:
            rows = F.embedding(input_ids, self.weight())
        return rows if self.scale == 1.0 else rows * self.scale

    def _emit(self, input_ids: Tensor) -> Tensor:
        _, count, _ = self.codes.shape
        blocks = torch.onnx.ops.symbolic(
            f"{CONTRIB}::GatherBlockQuantized",
            (self.codes, input_ids, self.scales.float()[..., None]),
            {
                "bits": self.stored.bits,
                "block_size": self.stored.block,
                "gather_axis": 0,
                "quantize_axis": 2,
            },
            dtype=torch.float32,
            shape=[*input_ids.shape, count, self.stored.block],
            version=1,
        )
        rows = blocks.flatten(-2)
        return rows if rows.shape[-1] == self.stored.depth else rows[..., : self.stored.depth]
