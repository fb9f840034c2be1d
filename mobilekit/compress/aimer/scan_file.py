"""Read one safetensors file: hash every byte of it, and sum the experts in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mobilekit.core.errors import InvalidInputError
from mobilekit.models.blocks import BLOCK, BlockReader
from mobilekit.models.stored_units import StoredUnits
from mobilekit.models.weights import FLOATS, TensorEntry

from .kernel import total, unit_sums

Read = Callable[[int, int], Tensor]  # start, bytes -> block


@dataclass(frozen=True)
class FileScan:
    """What was found in one safetensors file.

    Attributes:
        sha256: Of all its bytes.
        sums: For each tensor with experts' weights, its sums at each index of the dimension along
            which the experts lie, shape (K, 4); (1, 4) where it is one expert's own.
    """

    sha256: str
    sums: dict[str, Tensor]


def scan_file(
    path: Path,
    file: Path,
    entries: Mapping[str, TensorEntry],
    units: Mapping[str, StoredUnits],
    advance: Callable[[int], None],
    device: torch.device,
) -> FileScan:
    """Read one file from its first byte to its last.

    A block is hashed while it is summed and the next is read: of the three, hashing takes longest.

    Args:
        path: The checkpoint, for messages.
        file: The file.
        entries: The model's tensors in it.
        units: Which experts each stored tensor holds.
        advance: Told the bytes of each block as they are read.
        device: Where blocks are summed.

    Raises:
        InvalidInputError: If the file cannot be read, or a weight is NaN or infinite.
    """
    digest = hashlib.sha256()
    sums: dict[str, Tensor] = {}
    with BlockReader(buffers=2) as reader, ThreadPoolExecutor(1, "hash") as hasher:
        pending: list[Future[None]] = []

        def read(start: int, nbytes: int) -> Tensor:
            block = reader.read(file, start, nbytes)
            if pending:
                pending.pop().result()  # the block before: the next one is read over it
            pending.append(hasher.submit(digest.update, block.numpy().data))
            advance(nbytes)
            return block

        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
            _read_over(read, end, entry.start)
            held = units.get(name)
            found = _tensor_sums(read, entry, held.dim if held is not None else None, device)
            _check_finite(path, name, found, held)
            if held is not None and held.scored:
                sums[name] = found
            end = entry.start + entry.nbytes
        _read_over(read, end, file.stat().st_size)
    return FileScan(digest.hexdigest(), sums)


def _read_over(read: Read, start: int, stop: int) -> None:
    """Read what is no tensor of the model: the header, or tensors that it leaves out."""
    for begin in range(start, stop, BLOCK):
        read(begin, min(BLOCK, stop - begin))


def _tensor_sums(read: Read, entry: TensorEntry, dim: int | None, device: torch.device) -> Tensor:
    """Return the sums of a stored tensor at each index of ``dim``, shape (K, 4).

    Rows stay whole, so the sums are those of the tensor in memory, to the last bit.
    """
    dtype: torch.dtype = getattr(torch, FLOATS[entry.dtype])
    shape = entry.shape if dim is not None else (1, *(entry.shape or (1,)))
    at = dim or 0
    outer, count, inner = prod(shape[:at]), shape[at], shape[at + 1 :]
    if entry.nbytes == 0:
        return torch.zeros(count, 4, dtype=torch.float64)

    def blocks(start: int, nbytes: int, rows: int) -> Iterator[Tensor]:
        row = nbytes // rows
        step = max(1, BLOCK // row) * row
        for begin in range(start, start + nbytes, step):
            block = read(entry.start + begin, min(step, start + nbytes - begin))
            yield block.view(dtype).to(device)

    if outer > 1:
        spans = (b.view(-1, count, *inner).movedim(1, 0) for b in blocks(0, entry.nbytes, outer))
        return total([unit_sums(span) for span in spans])
    own = entry.nbytes // count
    if own <= BLOCK:
        return torch.cat([unit_sums(b.view(-1, *inner)) for b in blocks(0, entry.nbytes, count)])
    found = []
    for start in range(0, entry.nbytes, own):
        parts = blocks(start, own, prod(inner[:-1]))
        found.append(total([unit_sums(b.view(1, -1, inner[-1])) for b in parts]))
    return torch.cat(found)


def _check_finite(path: Path, name: str, sums: Tensor, held: StoredUnits | None) -> None:
    bad = (~sums.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if not bad:
        return
    unit = held.units[bad[0]] if held is not None and held.scored else -1
    if held is not None and unit >= 0:
        kind, layer = held.key
        what = f"{kind} {unit} of layer {layer} has weights that are NaN or infinite ({name})"
    else:
        what = f"{name} in {path} holds values that are NaN or infinite"
    raise InvalidInputError(
        what, hint="The checkpoint is damaged, or its training diverged: use another one."
    )
