"""Read large files in blocks, into memory that is used again and again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from mobilekit.core.errors import InvalidInputError

BLOCK = 8 << 20  # bytes; large enough for a disk, small enough for many readers at once


class BlockReader:
    """Opens files when they are first read, and holds a few blocks of them.

    Args:
        buffers: How many blocks stay valid: a block is overwritten that many reads later.
    """

    def __init__(self, buffers: int = 1) -> None:
        self._memory = [torch.empty(0, dtype=torch.uint8) for _ in range(buffers)]
        self._turn = 0
        self._handles: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])

    def read(self, file: Path, start: int, nbytes: int) -> Tensor:
        """Return ``nbytes`` bytes of a file from ``start`` on, shape (nbytes,), uint8.

        Raises:
            InvalidInputError: If the file cannot be read, or ends before.
        """
        self._turn = (self._turn + 1) % len(self._memory)
        if len(self._memory[self._turn]) < nbytes:
            self._memory[self._turn] = torch.empty(max(nbytes, BLOCK), dtype=torch.uint8)
        block = self._memory[self._turn][:nbytes]
        view = block.numpy().data
        done = 0
        try:
            handle = self._open(file)
            while done < nbytes:
                got = os.preadv(handle, [view[done:]], start + done)
                if got == 0:
                    raise _damaged(file, f"ends at byte {start + done}, before its last tensor")
                done += got
        except OSError as error:
            raise _damaged(file, f"cannot be read: {error.strerror}") from error
        return block

    def _open(self, file: Path) -> int:
        if file not in self._handles:
            handle = self._handles[file] = os.open(file, os.O_RDONLY)
            if hasattr(os, "posix_fadvise"):  # not on macOS
                # the system then reads ahead of us; told block by block, it takes twice as long
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self._handles[file]


def _damaged(file: Path, what: str) -> InvalidInputError:
    return InvalidInputError(f"{file} {what}", hint="Copy the file again from where it came.")
