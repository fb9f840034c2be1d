"""Look at a checkpoint's safetensors files without loading them: are they whole and true?

Only headers are read, and every figure in them is checked against the file before anything relies
on it. Pickled weights are never opened.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from mobilekit.core.errors import InvalidInputError, UnsupportedModelError
from mobilekit.core.files import read_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit

# safetensors dtype -> bytes an element
_ITEM_BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "C64": 8},
    **{"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1},
    **{"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
}
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint, as its file's header describes it.

    Attributes:
        file: The safetensors file that holds it.
        dtype: Name as safetensors writes it ("BF16").
        shape: Its shape.
        nbytes: Its size in bytes.
        start: Where in the file its bytes begin.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: int


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sorted.

    Raises:
        InvalidInputError: If there are none, one that the index names is missing, or the
            weights are pickled.
    """
    if (path / WEIGHTS_FILE).is_file():
        return [path / WEIGHTS_FILE]
    if (path / INDEX_FILE).is_file():
        files = {path / name for name in _weight_map(path).values()}
        for file in sorted(files):
            if not file.is_file():
                raise InvalidInputError(
                    f"{file} is missing, but {INDEX_FILE} names it",
                    hint="Copy the whole checkpoint again.",
                )
        return sorted(files)
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise InvalidInputError(
            f"{path} has only pickled weights ({pickles[0]}), which can run code when opened",
            hint="Where you trust it, load it in transformers and save_pretrained() it anew: "
            "that writes safetensors.",
        )
    raise InvalidInputError(
        f"{path} has no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE}",
        hint="Copy the whole checkpoint again.",
    )


def _weight_map(path: Path) -> dict[str, str]:
    index = read_json(path / INDEX_FILE)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not (isinstance(table, dict) and table and all(isinstance(v, str) for v in table.values())):
        raise InvalidInputError(
            f"{path / INDEX_FILE} has no 'weight_map' of tensor names to file names",
            hint="Copy the whole checkpoint again.",
        )
    for name in table.values():
        # plain names only; a cached hub model links them elsewhere, so links are allowed
        if name != PurePosixPath(name).name or "\\" in name:
            raise InvalidInputError(
                f"{path / INDEX_FILE} names a file outside of the checkpoint: {name}",
                hint="Do not use this checkpoint: its files must lie beside its index.",
            )
    return table


def tensor_table(path: Path) -> dict[str, TensorEntry]:
    """Return every tensor of a checkpoint by name, in order of name; headers only are read.

    Raises:
        InvalidInputError: If a file is missing, truncated, or its header contradicts it.
        UnsupportedModelError: If the weights are quantized.
    """
    table: dict[str, TensorEntry] = {}
    for file in weight_files(path):
        table.update(read_header(file))
    if not (path / WEIGHTS_FILE).is_file():
        for name, shard in _weight_map(path).items():
            if name not in table or table[name].file != path / shard:
                raise InvalidInputError(
                    f"{INDEX_FILE} says that {shard} holds {name}, but it does not",
                    hint="Copy the whole checkpoint again.",
                )
    if not table:
        raise InvalidInputError(f"{path} holds no tensors", hint="Copy the whole checkpoint again.")
    for name, entry in sorted(table.items()):
        if entry.dtype not in FLOATS:
            raise UnsupportedModelError(
                f"{name} in {entry.file} is stored as {entry.dtype}, not as floats",
                hint="Start from the float checkpoint; quantize when you export.",
            )
    return dict(sorted(table.items()))


def stored_dtype(table: dict[str, TensorEntry]) -> str:
    """Return the torch name of the widest float dtype in the table; it holds all values exactly."""
    names = {entry.dtype for entry in table.values()}
    if {"F16", "BF16"} <= names:
        names.add("F32")
    return FLOATS[next(name for name in ("F64", "F32", "BF16", "F16") if name in names)]


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Return the tensors that a safetensors file holds, every length checked against the file.

    Raises:
        InvalidInputError: If the file is truncated or its header is not true.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(9)
        # the length of the header in 8 bytes, then the header, which is a JSON object
        if not start or start[8:] not in (b"{", b""):
            what = "is not a safetensors file" if start else "is empty"
            raise InvalidInputError(f"{file} {what}", hint="Copy the file again from its source.")
        length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else None
        if length is None or not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise _damaged(file, f"its header does not fit in its {size} bytes")
        text = start[8:] + stream.read(length - 1)
    try:
        header = json.loads(text)
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        return _checked_entries(file, entries, 8 + length, size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"a header that cannot be read ({error!r:.80})") from None


def _checked_entries(
    file: Path, entries: dict[str, Any], data: int, size: int
) -> dict[str, TensorEntry]:
    """Return the entries if they tile the bytes from ``data`` to ``size``, each byte once."""
    end = 0
    table = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        shape = tuple(int(n) for n in entry["shape"])
        nbytes = prod(shape) * _ITEM_BYTES[entry["dtype"]]
        if begin != end or stop - begin != nbytes or min(shape, default=0) < 0:
            raise _damaged(file, f"{name} at bytes {begin}-{stop}, expected {end}-{end + nbytes}")
        table[name] = TensorEntry(file, entry["dtype"], shape, nbytes, data + begin)
        end = stop
    if data + end != size:
        raise _damaged(file, f"{size - data} bytes of tensors, expected {end}")
    return table


def _damaged(file: Path, found: str) -> InvalidInputError:
    return InvalidInputError(
        f"{file} is truncated or damaged: {found}",
        hint="Copy the file again from where it came.",
    )
