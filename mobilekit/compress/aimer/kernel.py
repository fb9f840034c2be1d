"""Σ|w| and Σw² of each unit in one pass over its weights; which kernel runs where.

Scores of a layer differ in the 3rd or 4th decimal. Every kernel and device ranks them alike, since
what each rounds to float32 is defined (see native.py), and all else is added up in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

from mobilekit.core import console

from . import native

Kernel = Literal["native", "fused", "eager"]

# Below this much eager is done before a compiler has started; a layer as large as this belongs to
# a model that has many of them.
_WORTH_BUILDING = 16 << 20  # bytes
# Elements that eager widens at once: 2 MB of float64, which stay in the cache of a core. Measured
# on 2 cores, bf16: 2.0 GB/s so, 0.2 GB/s with 32 MB. A GPU's cache is larger, its launches dearer.
_CHUNK, _GPU_CHUNK = 1 << 18, 1 << 22
_ALONE = 16 << 20  # bytes that one thread sums in a millisecond: no need to wake others
_JOBS = 16  # that each thread takes, about
_PAIRS = (native.DEPTH, native.LANES, 2)  # how a block of 16-bit weights is added up


def choose_kernel(device: torch.device, dtype: torch.dtype, nbytes: int) -> Kernel:
    """Return the kernel for so many bytes of weights.

    ``native`` on a CPU wherever it is built already, or is worth the fraction of a second that it
    takes to build; else ``eager``. On a GPU ``eager`` too: what fits there takes it less time than
    torch.compile needs, so ``fused`` is for who scores again and again.
    """
    if device.type != "cpu" or str(dtype).removeprefix("torch.") not in native.DTYPES:
        return "eager"
    wanted = native.is_built() or nbytes >= _WORTH_BUILDING
    return "native" if wanted and native.library() is not None else "eager"


def unit_sums(weights: Tensor, kernel: Kernel | None = None) -> Tensor:
    """Return Σ|w| and Σw² of each unit.

    Args:
        weights: The units' weights, shape (U, …), any float dtype, any device.
        kernel: Which kernel; chosen by dtype, device and size where ``None``.

    Returns:
        Shape (U, 4), float64, on a CPU: Σ|w| and what its rounding lost, Σw² and what its
        rounding lost. Add parts of one unit with :func:`total`: it then does not matter how the
        weights were cut into calls, as long as rows (the last dimension) stay whole.
    """
    weights = weights.detach()
    name = kernel or choose_kernel(weights.device, weights.dtype, weights.nbytes)
    _tell(name, str(weights.device), str(weights.dtype))
    units = weights.shape[0]
    if weights.numel() == 0:
        return torch.zeros(units, 4, dtype=torch.float64)
    width = weights.shape[-1] if weights.dim() > 1 else 1
    if not weights.is_contiguous():  # a copy, but never of more than a chunk or one unit
        step = max(1, _CHUNK // math.prod(weights.shape[1:]))
        parts = (weights[i : i + step].contiguous() for i in range(0, units, step))
        return torch.cat([unit_sums(part, name) for part in parts])
    rows = weights.view(units, -1, width)  # (U, R, n)
    return _native(rows) if name == "native" else _by_rows(rows, name)


def total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sums of units of which each part holds a share, shape (U, 4), as the parts have.

    The additions are exact, so their order does not matter.
    """
    if len(parts) == 1:
        return parts[0]
    stacked = torch.cat([part.view(-1, 2, 2) for part in parts], dim=2).tolist()  # (U, 2, 2·parts)
    sums = [[*_exact(absolute), *_exact(squared)] for absolute, squared in stacked]
    return torch.tensor(sums, dtype=torch.float64)


@functools.cache
def _tell(kernel: Kernel, device: str, dtype: str) -> None:
    console.detail(f"scoring {dtype.removeprefix('torch.')} on {device} with the {kernel} kernel")


def _exact(values: Sequence[float]) -> tuple[float, float]:
    """Return the correctly rounded sum, and the sum of what that lost."""
    high = _fsum(values)
    return high, _fsum([*values, -high]) if math.isfinite(high) else high


def _fsum(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # infinities of both signs, or beyond float64
        return math.nan


def _native(rows: Tensor) -> Tensor:
    """Run the C kernel on every thread that torch would use; it holds no lock of Python's."""
    units, per_unit, width = rows.shape
    function = getattr(native.library(), f"sums_{str(rows.dtype).removeprefix('torch.')}")
    threads = torch.get_num_threads() if rows.nbytes > _ALONE else 1
    # with few units, each is cut into parts; some jobs a thread even out what else the machine does
    most = _JOBS * threads
    wanted = min(per_unit, -(-most // units))
    cuts = next(n for n in range(wanted, 0, -1) if per_unit % n == 0)
    jobs, share = units * cuts, per_unit // cuts
    sums = torch.zeros(jobs, 4, dtype=torch.float64)

    def run(first: int, last: int) -> None:
        start = rows.data_ptr() + first * share * width * rows.element_size()
        function(start, last - first, share, width, sums[first:last].data_ptr())

    bounds = [jobs * i // min(jobs, most) for i in range(min(jobs, most) + 1)]
    if threads == 1:
        run(0, jobs)
    else:
        list(_pool(threads).map(run, bounds[:-1], bounds[1:]))
    return total(list(sums.view(units, cuts, 4).unbind(1)))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "aimer")


def _by_rows(rows: Tensor, kernel: Kernel) -> Tensor:
    """Reduce rows to float64 with torch, then units."""
    units, per_unit, width = rows.shape
    flat = rows.view(-1, width)
    if kernel == "fused":
        found = [_compiled()(flat)]
    else:
        step = max(1, (_GPU_CHUNK if rows.is_cuda else _CHUNK) // width)
        found = [_row_sums(flat[start : start + step]) for start in range(0, len(flat), step)]
    pair = [torch.cat(column).view(units, per_unit) for column in zip(*found, strict=True)]
    if rows.is_cuda:  # not row by row in Python; the order there is the device's own
        absolute, squared = (column.sum(1) for column in pair)
        nothing = torch.zeros_like(absolute)
        return torch.stack([absolute, nothing, squared, nothing], dim=1).cpu()
    exact = [[_exact(values) for values in column.tolist()] for column in pair]
    sums = [[*absolute, *squared] for absolute, squared in zip(*exact, strict=True)]
    return torch.tensor(sums, dtype=torch.float64)


def _row_sums(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ|w| and Σw² of each row, float64, rounded where the native kernel rounds."""
    if rows.element_size() > 2:
        return _wide_sums(rows)
    blocks = rows.shape[1] // native.BLOCK
    done = blocks * native.BLOCK
    absolute, squared = _narrow_sums(rows[:, :done].reshape(len(rows), blocks, *_PAIRS))
    rest = _wide_sums(rows[:, done:])
    least, most = native.SQUARES
    sound = (absolute == 0) | (squared >= least) & (squared <= most)
    if sound.all():
        return absolute + rest[0], squared + rest[1]
    whole = _wide_sums(rows)
    return (
        torch.where(sound, absolute + rest[0], whole[0]),
        torch.where(sound, squared + rest[1], whole[1]),
    )


def _narrow_sums(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of 16-bit weights, shape (R, blocks, DEPTH, LANES, 2)."""
    first, second = blocks.float().abs().unbind(-1)
    absolute, squared = first + second, first.square() + second.square()
    lanes = (functools.reduce(torch.add, sums.unbind(2)) for sums in (absolute, squared))
    first, second = (lane.double().sum((1, 2)) for lane in lanes)
    return first, second


def _wide_sums(rows: Tensor) -> tuple[Tensor, Tensor]:
    wide = rows.double().abs()
    return wide.sum(1), wide.square().sum(1)


@functools.cache
def _compiled() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_row_sums, dynamic=True)
