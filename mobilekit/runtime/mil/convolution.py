"""MIL's convolution, in any number of dimensions, with groups."""

from __future__ import annotations

import numpy as np

from mobilekit.core.errors import NotExecutableError

from .layout import Array


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    dilations: Array | None = None,
    groups: int = 1,
) -> Array:
    """Convolve x (N, C, *D) with weight (O, C / groups, *K): one matrix product a group."""
    rank = x.ndim - 2
    stride = [1] * rank if strides is None else [int(s) for s in strides]
    dilation = [1] * rank if dilations is None else [int(d) for d in dilations]
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *_borders(pad_type, pad, rank)])
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    steps = tuple(slice(None, None, s) for s in stride)
    taps = tuple(slice(None, None, d) for d in dilation)
    windows = windows[(slice(None), slice(None), *steps, *taps)]  # (N, C, *D', *K)
    batch, places = x.shape[0], windows.shape[2 : 2 + rank]
    per_group = windows.reshape(batch, groups, -1, *windows.shape[2:])
    # (N, groups, *D', C / groups, *K), then flat on both sides of the product
    moved = np.moveaxis(per_group, 2, 2 + rank).reshape(batch, groups, int(np.prod(places)), -1)
    filters = weight.reshape(groups, weight.shape[0] // groups, -1)
    y = np.matmul(filters, np.swapaxes(moved, -1, -2))  # (N, groups, O / groups, D')
    y = y.reshape(batch, weight.shape[0], *places)
    return np.asarray(y if bias is None else y + bias.reshape(-1, *[1] * rank))


def _borders(pad_type: str, pad: Array | None, rank: int) -> list[tuple[int, int]]:
    """Return how many zeros go before and after each spatial dimension."""
    if pad_type not in ("valid", "custom"):
        raise NotExecutableError(
            f"MIL convolution with pad_type '{pad_type}' is not one that the evaluator knows",
            hint="Run the package on macOS, or add it to mobilekit/runtime/mil.",
        )
    if pad_type == "valid" or pad is None:
        return [(0, 0)] * rank
    return [(int(before), int(after)) for before, after in np.reshape(pad, (-1, 2))]


OPS = {"conv": conv}
