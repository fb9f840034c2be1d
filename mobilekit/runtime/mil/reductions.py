"""MIL operations that reduce axes; none given means all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .layout import Array


def reduce_argmax(
    x: Array, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Array:
    """Return the index of the largest entry, the first of equals."""
    return np.asarray(np.argmax(x, axis=axis, keepdims=keep_dims))


def reduce_argmin(
    x: Array, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Array:
    """Return the index of the smallest entry, the first of equals."""
    return np.asarray(np.argmin(x, axis=axis, keepdims=keep_dims))


def _log_sum_exp(x: Array, *, axis: Any, keepdims: bool) -> Array:
    """Return ``log Σ exp(x)``; the largest entry is taken out, so that nothing overflows."""
    top = np.max(x, axis=axis, keepdims=True)
    total = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return np.asarray(total if keepdims else np.squeeze(total, axis=axis))


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(x: Array, axes: Array | None = None, keep_dims: bool = False) -> Array:
        over = tuple(range(x.ndim))
        if axes is not None and len(axes) > 0:
            over = tuple(int(a) for a in axes)
        return np.asarray(function(x, axis=over, keepdims=keep_dims))

    return reduce


_BY_AXES: dict[str, Callable[..., Any]] = {
    "reduce_l1_norm": lambda x, **how: np.sum(np.abs(x), **how),
    "reduce_l2_norm": lambda x, **how: np.sqrt(np.sum(x * x, **how)),
    "reduce_log_sum": lambda x, **how: np.log(np.sum(x, **how)),
    "reduce_log_sum_exp": _log_sum_exp,
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, **how: np.sum(x * x, **how),
}

OPS: dict[str, Callable[..., Any]] = {
    "reduce_argmax": reduce_argmax,
    "reduce_argmin": reduce_argmin,
    **{name: _reduction(function) for name, function in _BY_AXES.items()},
}
