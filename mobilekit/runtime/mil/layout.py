"""MIL operations that only move, select or create values: exact in every dtype.

One function an operation, its arguments named as in the MIL specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def cast(x: Array, dtype: str) -> Array:
    """Convert; a float becomes an integer by dropping its fraction, and a bool by ``!= 0``."""
    return np.asarray(x).astype(_DTYPES[dtype])


_DTYPES: dict[str, type] = {
    "bool": np.bool_,
    "fp16": np.float16,
    "fp32": np.float32,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "uint8": np.uint8,
    "uint16": np.uint16,
}


def concat(values: Sequence[Array], axis: int, interleave: bool = False) -> Array:
    """Join along an axis; with ``interleave``, entry by entry (all lengths are then equal)."""
    if not interleave:
        return np.concatenate([np.atleast_1d(v) for v in values], axis=axis)
    axis = axis % values[0].ndim
    stacked = np.stack(values, axis=axis + 1)
    shape = values[0].shape
    return stacked.reshape(*shape[:axis], -1, *shape[axis + 1 :])


def expand_dims(x: Array, axes: Array) -> Array:
    """Insert axes of length 1."""
    return np.expand_dims(x, tuple(int(a) for a in axes))


def fill(shape: Array, value: Any) -> Array:
    """Return a tensor of one value."""
    return np.full([int(s) for s in shape], value)


def gather(
    x: Array, indices: Array, axis: int, batch_dims: int = 0, validate_indices: bool = False
) -> Array:
    """Take slices along an axis; the first ``batch_dims`` dimensions are matched pairwise."""
    if batch_dims == 0:
        return np.take(x, indices, axis=axis)
    axis = axis % x.ndim
    lead = x.shape[:batch_dims]
    rows = [
        np.take(x[at], np.asarray(indices)[at], axis=axis - batch_dims) for at in np.ndindex(*lead)
    ]
    return np.stack(rows).reshape(*lead, *rows[0].shape)


def gather_along_axis(x: Array, indices: Array, axis: int, validate_indices: bool = False) -> Array:
    """Take single entries along an axis."""
    return np.take_along_axis(x, indices, axis=axis)


def identity(x: Array) -> Array:
    """Return the input."""
    return x


def one_hot(
    indices: Array, one_hot_vector_size: int, axis: int = -1, on_value: Any = 1, off_value: Any = 0
) -> Array:
    """Return ``on_value`` where the new axis' index equals the entry, else ``off_value``."""
    index = np.asarray(indices)
    hot = index[..., None] == np.arange(one_hot_vector_size)
    return np.moveaxis(np.where(hot, on_value, off_value), -1, axis)


def pad(x: Array, pad: Array, mode: str = "constant", constant_val: Any = 0) -> Array:
    """Extend the last dimensions; ``pad`` is (before, after) of each."""
    pairs = [(int(before), int(after)) for before, after in np.reshape(pad, (-1, 2))]
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    if mode == "constant":
        return np.pad(x, widths, constant_values=constant_val)
    return np.pad(x, widths, mode="edge" if mode == "replicate" else "reflect")


def range_1d(start: Any, end: Any, step: Any) -> Array:
    """Return evenly spaced values, ``end`` excluded."""
    return np.arange(start, end, step)


def reshape(x: Array, shape: Array) -> Array:
    """Change the shape; 0 keeps that dimension, -1 is worked out."""
    sizes = [x.shape[i] if s == 0 else int(s) for i, s in enumerate(shape)]
    return np.reshape(x, sizes)


def reverse(x: Array, axes: Array | None = None) -> Array:
    """Reverse the order along the axes; along all where there are none."""
    return np.flip(x, None if axes is None else tuple(int(a) for a in axes))


def select(cond: Array, a: Array, b: Array) -> Array:
    """Return ``a`` where the condition holds, else ``b``."""
    return np.where(cond, a, b)


def shape(x: Array) -> Array:
    """Return the shape as int32."""
    return np.asarray(x.shape, dtype=np.int32)


def slice_by_index(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    """Slice every dimension; a masked bound is open, a squeezed dimension takes one entry."""
    return np.asarray(x[_index(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)])


def slice_update(
    x: Array,
    update: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    """Return a copy with the slice that ``slice_by_index`` would take replaced by ``update``."""
    y = x.copy()
    y[_index(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)] = update
    return y


def _index(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None,
    begin_mask: Array | None,
    end_mask: Array | None,
    squeeze_mask: Array | None,
) -> tuple[Any, ...]:
    index: list[Any] = []
    for d in range(x.ndim):
        if squeeze_mask is not None and squeeze_mask[d]:
            index.append(int(begin[d]))
            continue
        first = None if begin_mask is not None and begin_mask[d] else int(begin[d])
        last = None if end_mask is not None and end_mask[d] else int(end[d])
        index.append(slice(first, last, 1 if stride is None else int(stride[d])))
    return tuple(index)


def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """Slice every dimension from ``begin`` for ``size`` entries; -1 goes to the end."""
    bounds = zip(begin, size, strict=True)
    return x[tuple(slice(int(b), None if s == -1 else int(b) + int(s)) for b, s in bounds)]


def split(
    x: Array, axis: int, split_sizes: Array | None = None, num_splits: int | None = None
) -> list[Array]:
    """Cut along an axis, into parts of the given sizes or into equal ones."""
    if split_sizes is None:
        return np.split(x, int(num_splits or 1), axis=axis)
    return np.split(x, np.cumsum(split_sizes)[:-1], axis=axis)


def squeeze(x: Array, axes: Array | None = None) -> Array:
    """Remove axes of length 1."""
    return np.squeeze(x, None if axes is None else tuple(int(a) for a in axes))


def stack(values: Sequence[Array], axis: int) -> Array:
    """Join along a new axis."""
    return np.stack(values, axis=axis)


def tile(x: Array, reps: Array) -> Array:
    """Repeat the tensor along every dimension."""
    return np.tile(x, [int(r) for r in reps])


def topk(
    x: Array,
    k: int,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> list[Array]:
    """Return the k largest (smallest if ``ascending``) entries in order; ties by lowest index."""
    keys = x if ascending else -x.astype(np.float32)
    order = np.argsort(keys, axis=axis, kind="stable")
    index = np.take(order, range(int(k)), axis=axis)
    values = np.take_along_axis(x, index, axis=axis)
    return [values, index] if return_indices else [values]


def transpose(x: Array, perm: Array) -> Array:
    """Permute the dimensions."""
    return np.transpose(x, [int(p) for p in perm])


OPS = {
    f.__name__: f
    for f in (
        cast,
        concat,
        expand_dims,
        fill,
        gather,
        gather_along_axis,
        identity,
        one_hot,
        pad,
        range_1d,
        reshape,
        reverse,
        select,
        shape,
        slice_by_index,
        slice_by_size,
        slice_update,
        split,
        squeeze,
        stack,
        tile,
        topk,
        transpose,
    )
}
