"""MIL operations that compute.

The evaluator hands them fp32 where the program says fp16 and rounds their result once: that is what
fp16 hardware with fp32 accumulators does.

One function an operation, its arguments named as in the MIL specification.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .layout import Array


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return ``x @ weight.T + bias``."""
    y = np.matmul(x, weight.T)
    return np.asarray(y if bias is None else y + bias)


def matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    """Return the batched matrix product."""
    left = np.swapaxes(x, -1, -2) if transpose_x else x
    right = np.swapaxes(y, -1, -2) if transpose_y else y
    return np.asarray(np.matmul(left, right))


def scaled_dot_product_attention(
    query: Array, key: Array, value: Array, attn_mask: Array | None = None
) -> Array:
    """Return ``softmax(q kᵀ / √d + mask) v``; a boolean mask is true where attention is allowed."""
    scores = np.matmul(query, np.swapaxes(key, -1, -2)) / np.sqrt(np.float32(query.shape[-1]))
    if attn_mask is not None and attn_mask.dtype == np.bool_:
        scores = np.where(attn_mask, scores, -np.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return np.asarray(np.matmul(softmax(scores), value))


def softmax(x: Array, axis: int = -1) -> Array:
    """Return the softmax along an axis."""
    exponent = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=axis, keepdims=True))


def layer_norm(
    x: Array,
    axes: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """Normalise to mean 0 and variance 1 over the axes, then scale and shift."""
    over = tuple(range(x.ndim)) if axes is None else tuple(int(a) for a in axes)
    centred = x - x.mean(axis=over, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axis=over, keepdims=True) + epsilon)
    shape = [x.shape[d] if d in {a % x.ndim for a in over} else 1 for d in range(x.ndim)]
    y = y if gamma is None else y * gamma.reshape(shape)
    return np.asarray(y if beta is None else y + beta.reshape(shape))


def clip(x: Array, alpha: float, beta: float) -> Array:
    """Limit to [alpha, beta]."""
    return np.clip(x, alpha, beta)


def cumsum(x: Array, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Array:
    """Return running sums, with or without the entry itself, from either end."""
    y = np.flip(x, axis) if reverse else x
    sums = np.cumsum(y, axis=axis, dtype=x.dtype)
    sums = sums - y if exclusive else sums
    return np.flip(sums, axis) if reverse else sums


def einsum(values: Sequence[Array], equation: str) -> Array:
    """Return the sum of products that the equation says."""
    return np.asarray(np.einsum(equation, *values))


def erf(x: Array) -> Array:
    """Return the error function."""
    import math

    flat = np.asarray(x, dtype=np.float64).ravel()
    return np.fromiter(map(math.erf, flat), np.float64, flat.size).reshape(np.shape(x))


def gelu(x: Array, mode: str = "EXACT") -> Array:
    """Return GELU: exact, by tanh, or by sigmoid."""
    if mode == "EXACT":
        return np.asarray(0.5 * x * (1 + erf(x / np.sqrt(2))))
    if mode == "TANH_APPROXIMATION":
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
    return np.asarray(x * sigmoid(1.702 * x))


def inverse(x: Array, epsilon: float = 1e-4) -> Array:
    """Return ``1 / (x + epsilon)``."""
    return np.asarray(1 / (x + np.asarray(epsilon, x.dtype)))


def log(x: Array, epsilon: float = 1e-45) -> Array:
    """Return ``log(x + epsilon)``."""
    return np.asarray(np.log(x + np.asarray(epsilon, x.dtype)))


def real_div(x: Array, y: Array) -> Array:
    """Return the quotient."""
    return np.asarray(np.true_divide(x, y))


def rsqrt(x: Array, epsilon: float = 1e-12) -> Array:
    """Return ``1 / sqrt(x + epsilon)``."""
    return np.asarray(1 / np.sqrt(x + np.asarray(epsilon, x.dtype)))


def sigmoid(x: Array) -> Array:
    """Return the logistic function, exact at both ends: the exponent is never positive."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small))


def silu(x: Array) -> Array:
    """Return ``x · sigmoid(x)``."""
    return np.asarray(x * sigmoid(x))


def softplus(x: Array) -> Array:
    """Return ``log(1 + exp(x))``."""
    return np.asarray(np.logaddexp(x, np.zeros_like(x)))


def relu(x: Array) -> Array:
    """Return ``max(x, 0)``."""
    return np.maximum(x, 0)


def leaky_relu(x: Array, alpha: float = 0.01) -> Array:
    """Return ``x`` where positive, else ``alpha · x``."""
    return np.asarray(np.where(x >= 0, x, alpha * x))


def constexpr_blockwise_shift_scale(
    data: Array, scale: Array, offset: Array | None = None
) -> Array:
    """Return ``(data - offset) · scale``, each scale standing for an equal block of the data."""
    shifted = np.asarray(data, dtype=np.float32)
    if offset is not None:
        shifted = shifted - _per_entry(np.asarray(offset, dtype=np.float32), shifted.shape)
    return shifted * _per_entry(scale, shifted.shape)


def _per_entry(blocks: Array, shape: tuple[int, ...]) -> Array:
    for axis, size in enumerate(shape):
        repeat = size // blocks.shape[axis]
        if blocks.shape[axis] != 1 and repeat != 1:
            blocks = np.repeat(blocks, repeat, axis=axis)
    return blocks


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: function(x)


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: function(x, y)


_UNARY = {
    "abs": np.abs,
    "ceil": np.ceil,
    "cos": np.cos,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "logical_not": np.logical_not,
    "round": np.rint,
    "sign": np.sign,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "square": np.square,
    "tanh": np.tanh,
}
_BINARY = {
    "add": np.add,
    "equal": np.equal,
    "floor_div": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,
    "mul": np.multiply,
    "not_equal": np.not_equal,
    "pow": np.power,
    "sub": np.subtract,
}
OPS: dict[str, Callable[..., Any]] = {
    **{name: _unary(f) for name, f in _UNARY.items()},
    **{name: _binary(f) for name, f in _BINARY.items()},
    **{
        f.__name__: f
        for f in (
            clip,
            constexpr_blockwise_shift_scale,
            cumsum,
            einsum,
            erf,
            gelu,
            inverse,
            layer_norm,
            leaky_relu,
            linear,
            log,
            matmul,
            real_div,
            relu,
            rsqrt,
            scaled_dot_product_attention,
            sigmoid,
            silu,
            softmax,
            softplus,
        )
    },
}
