"""Write a cut checkpoint from a stored one, file to file: one block is in memory at a time."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilekit.core import console
from mobilekit.core.errors import UsageError
from mobilekit.core.files import atomic_write_json, free_disk_bytes, sha256_json
from mobilekit.core.needs import gigabytes
from mobilekit.schema.plan import PLAN_FILE

from .architecture import quiet_transformers
from .blocks import BLOCK, BlockReader
from .checkpoint import copy_companions
from .inspect import checkpoint_hash
from .lineage import Provenance, provenance, record
from .staging import resumable_directory
from .stored import StoredModel, stored_specs
from .stored_units import Cut, Key, cuts
from .weights import FLOATS, INDEX_FILE, TensorEntry

_NAMES = {torch_name: name for name, torch_name in FLOATS.items()}
_ORDER = ("F64", "F32", "BF16", "F16")  # of tensors in a file: as safetensors itself has it


def save_cut(
    stored: StoredModel, result: nn.Module, kept: Mapping[Key, Sequence[int]], out: str | Path
) -> Path:
    """Write the checkpoint of ``result``, as ``save`` would if it had its weights.

    Its files are at most as large as the largest of ``stored``, or as transformers would make
    them of a single one. Interrupted, it goes on with the next call, at the file.

    Args:
        stored: The checkpoint that the weights come from.
        result: What is left of its model, on the meta device, with its provenance; that then
            points to ``out``.
        kept: For each group that lost units, which of them stay, ascending.
        out: Directory to create.

    Raises:
        UsageError: If ``out`` exists and is not empty, or the disk is too small.
        OutputError: If it cannot be written.
        InvalidInputError: If a file of ``stored`` cannot be read.
        UnsupportedModelError: If units cannot be told apart on disk.
    """
    target = Path(out)
    history = provenance(result)
    origin = cuts(stored.model, result, kept)
    specs = stored_specs(result)
    shards = _shards(specs, _limit(stored))
    plans = [plan.to_json() for plan in history.plans]
    source_hash = provenance(stored.model).parent_hash or checkpoint_hash(stored.path)
    job = sha256_json([source_hash, plans, shards])
    with resumable_directory(target, job) as folder:
        missing = {file: names for file, names in shards.items() if not (folder / file).exists()}
        size = sum(specs[name].nbytes for names in missing.values() for name in names)
        _check_disk(size, target)
        with console.progress(size, f"writing {target.name}") as bar:
            for file, names in missing.items():
                for done in _write_shard(folder / file, names, specs, origin, stored.table):
                    bar.advance(done, file)
        _write_companions(stored, result, folder)
        _write_index(result, specs, shards, folder)
        if plans:
            atomic_write_json(folder / PLAN_FILE, plans)
        for path in folder.iterdir():
            path.chmod(0o644)
        folder.chmod(0o755)
    record(result, Provenance(target, history.plans))
    return target


def _limit(stored: StoredModel) -> int | str:
    """Return the largest size of a file, as ``save_pretrained`` takes it."""
    sizes: dict[Path, int] = {}
    for entry in stored.table.values():
        sizes[entry.file] = sizes.get(entry.file, 0) + entry.nbytes
    if len(sizes) > 1:
        return max(sizes.values())
    from transformers import PreTrainedModel

    default = (
        inspect.signature(PreTrainedModel.save_pretrained).parameters["max_shard_size"].default
    )
    assert isinstance(default, int | str)
    return default


def _shards(specs: Mapping[str, Tensor], limit: int | str) -> dict[str, list[str]]:
    """Return which tensors go into which file, as ``save_pretrained`` shards them."""
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(specs),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    return split.filename_to_tensors


def _check_disk(size: int, target: Path) -> None:
    free = free_disk_bytes(target.parent)
    if size > free:
        raise UsageError(
            f"{target} needs {gigabytes(size)} of disk, but {gigabytes(free)} are free there",
            hint="Free some space or choose another --out.",
        )


def _write_shard(
    path: Path,
    names: Sequence[str],
    specs: Mapping[str, Tensor],
    origin: Mapping[str, Cut],
    table: Mapping[str, TensorEntry],
) -> Iterator[int]:
    """Write one safetensors file, whole or not at all; yield the bytes done, block by block."""
    ordered = sorted(names, key=lambda name: (_ORDER.index(_dtype(specs[name])), name))
    hidden = path.with_name(f".{path.name}")
    with hidden.open("wb") as stream, BlockReader() as reader:
        stream.write(_header(ordered, specs))
        for name in ordered:
            for block in _blocks(reader, table[origin[name].source], origin[name]):
                wide = block.to(specs[name].dtype)
                stream.write(wide.view(torch.uint8).numpy().data)
                yield wide.nbytes
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(hidden, path)


def _blocks(reader: BlockReader, entry: TensorEntry, cut: Cut) -> Iterator[Tensor]:
    """Yield what stays of a stored tensor, flat, in its own dtype, block by block."""
    dtype: torch.dtype = getattr(torch, FLOATS[entry.dtype])
    if cut.dim is None:
        runs = [(0, entry.nbytes)]
    elif prod(entry.shape[: cut.dim]) == 1:
        runs = _runs(cut.indices, entry.nbytes // entry.shape[cut.dim])
    else:
        yield from _selected(reader, entry, cut, dtype)
        return
    for start, stop in runs:
        for begin in range(start, stop, BLOCK):
            nbytes = min(BLOCK, stop - begin)
            yield reader.read(entry.file, entry.start + begin, nbytes).view(dtype)


def _runs(indices: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Return the byte ranges of ``indices``, each ``width`` wide; neighbours are joined."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index * width:
            runs[-1] = (runs[-1][0], (index + 1) * width)
        else:
            runs.append((index * width, (index + 1) * width))
    return runs


def _selected(
    reader: BlockReader, entry: TensorEntry, cut: Cut, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Yield a tensor that is cut along an inner dimension."""
    assert cut.dim is not None
    outer, size = prod(entry.shape[: cut.dim]), entry.shape[cut.dim]
    row = entry.nbytes // outer
    index = torch.tensor(cut.indices)
    step = max(1, BLOCK // row)
    for first in range(0, outer, step):
        count = min(step, outer - first)
        block = reader.read(entry.file, entry.start + first * row, count * row).view(dtype)
        yield block.view(count, size, -1).index_select(1, index).flatten()


def _header(names: Sequence[str], specs: Mapping[str, Tensor]) -> bytes:
    """Return the head of a safetensors file, byte for byte as the library writes it."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + specs[name].nbytes
        shape = list(specs[name].shape)
        fields[name] = {"dtype": _dtype(specs[name]), "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _dtype(spec: Tensor) -> str:
    return _NAMES[str(spec.dtype).removeprefix("torch.")]


def _write_companions(stored: StoredModel, result: Any, folder: Path) -> None:
    """Write all but weights and plans: configs as transformers does, tokenizer and licences."""
    with tempfile.TemporaryDirectory() as made:  # transformers tidies up where it saves
        with quiet_transformers():
            result.save_pretrained(made, state_dict={})
        for file in Path(made).iterdir():
            shutil.copyfile(file, folder / file.name)
    copy_companions(stored.path, folder)


def _write_index(
    result: Any, specs: Mapping[str, Tensor], shards: Mapping[str, Sequence[str]], folder: Path
) -> None:
    if len(shards) == 1:
        return
    size = sum(spec.nbytes for spec in specs.values())
    files = {name: file for file, names in shards.items() for name in names}
    metadata = {"total_parameters": result.num_parameters(), "total_size": size}
    index = {"metadata": metadata, "weight_map": files}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / INDEX_FILE).write_text(text, encoding="utf-8")
