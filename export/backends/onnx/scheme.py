"""Few-bit blocks: how ``MatMulNBits`` stores a weight, and what its kernels read back.

A block is a run of one row's elements that share a scale. Codes are unsigned around the middle
level; scales are stored in half precision, as llama.cpp's Q4_0 does: 4.25 bits an element at four
bits and blocks of 64, where float32 scales would make it 4.5. A ``Cast`` in the graph widens them,
which ONNX Runtime folds away when it opens the file.

Schemes of ``onnxruntime.quantization`` at eight bits, measured on the embedded model (hidden 128, 4
layers, 16 experts; one thread, x86-64 with int8 dot products; divergence from fp32 on 512 tokens):

===========================  =======  =========  ==============  =================
scheme                       file MB  decode     prefill of 128  mean KL in nats
===========================  =======  =========  ==============  =================
fp32                         11.3     1.00       1.00            0
MatMulNBits, blocks of 128    3.0     3.7        1.2             0.0010
MatMulNBits, blocks of 32     3.2     3.3        1.1             0.0005
quantize_dynamic              3.3     2.9        1.8             0.0021 to 0.0046
===========================  =======  =========  ==============  =================

``MatMulNBits`` was chosen over ``quantize_dynamic`` (``MatMulInteger``). It decodes faster and errs
less: it scales each row of activations by itself, where the other takes one scale for all tokens of
a call, so that one outlier spoils a whole prompt (the larger of the two figures) and the result
depends on how a prompt is cut. It lets a tied table be stored once, its arithmetic can be
reproduced exactly, and it has four bits. The price is a slower prefill.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mobilekit.core.errors import InvalidInputError

from ...int4 import round_groups

BITS = {"int8": 8, "int4": 4}
ACCURACY_LEVEL = 4  # quantize the activations to int8 too, and multiply in integers
_INT4_BLOCKS = (64, 32)
_INT8_BLOCKS = (128, 64, 32, 16)
_ROWS_AT_ONCE = 16384  # bounds the transposed float copy that the tool needs: 64 MB at K = 1024


@dataclass(frozen=True)
class BlockWeight:
    """A weight (N, K) in few-bit blocks along K; the last block may be padded with zeros.

    Attributes:
        codes: (N, blocks, block · bits / 8) uint8, low-order bits first.
        scales: (N, blocks) float16.
        bits: 4 or 8.
        depth: K.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    depth: int

    @property
    def block(self) -> int:
        """Elements that share a scale."""
        return int(self.codes.shape[-1]) * 8 // self.bits

    def dequantize(self) -> Tensor:
        """Return the weight that the kernels compute with, (N, K) float32."""
        levels = self.codes
        if self.bits == 4:
            levels = torch.stack((levels & 15, levels >> 4), dim=-1).flatten(-2)
        values = levels.float().sub_(1 << (self.bits - 1)).mul_(self.scales.float()[..., None])
        return values.flatten(1)[:, : self.depth].contiguous()


def block_size(depth: int, bits: int) -> int:
    """Return the block for a reduction length: the largest in use that divides it.

    Large blocks store fewer scales and multiply faster: at four bits the kernels read two floats a
    block beside the codes. Where none divides, the smallest pads least.
    """
    blocks = _INT4_BLOCKS if bits == 4 else _INT8_BLOCKS
    return next((size for size in blocks if depth % size == 0), blocks[-1])


def quantize_blocks(weight: Tensor, bits: int, block: int) -> BlockWeight:
    """Quantize one weight (N, K) symmetrically: eight bits by ONNX Runtime's own tool.

    Raises:
        InvalidInputError: If a scale exceeds half precision (a weight beyond 8e6 or 5e5).
    """
    if bits == 4:
        levels, scales = round_groups(weight, block, torch.float16, is_signed=True)
        codes = levels.add_(8).view(torch.uint8)
        packed = codes[..., ::2] | (codes[..., 1::2] << 4)
        return BlockWeight(packed, scales, bits, weight.shape[1])
    return _quantize_bytes(weight, block)


def _quantize_bytes(weight: Tensor, block: int) -> BlockWeight:
    tool = _tool()
    config = tool.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=8)
    quantizer = tool.DefaultWeightOnlyQuantizer(config)
    parts = []
    for rows in torch.split(weight.detach(), _ROWS_AT_ONCE):
        columns = np.ascontiguousarray(rows.float().numpy().T)  # (K, N), the layout of MatMul
        parts.append(quantizer.qbits_block_quant(columns)[:2])
    codes, scales = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
    halved = scales.to(torch.float16)
    if not (halved.isfinite().all() and weight.isfinite().all()):
        raise InvalidInputError(
            "a weight is not finite, or too large for a half-precision scale",
            hint="Check the checkpoint for values that are not finite.",
        )
    return BlockWeight(codes, halved, 8, weight.shape[1])


def round_activations(hidden: Tensor, block: int) -> Tensor:
    """Round to the 255 levels of a symmetric int8, one scale a row and block of the last axis.

    What the kernels do to activations at accuracy level 4.
    """
    depth = hidden.shape[-1]
    padded = F.pad(hidden, (0, -depth % block))
    blocks = padded.reshape(*padded.shape[:-1], -1, block)
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest > 0, 127.0 / largest, torch.zeros_like(largest))
    levels = torch.round(blocks * inverse)  # ties to even, as the kernels do
    rounded: Tensor = levels * (largest / 127.0)
    return rounded.flatten(-2)[..., :depth]


def _tool() -> Any:
    """Import the quantizer; it turns on logging for the whole process, which is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    from onnxruntime.quantization import matmul_nbits_quantizer

    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger(matmul_nbits_quantizer.__name__).setLevel(logging.ERROR)
    return matmul_nbits_quantizer
