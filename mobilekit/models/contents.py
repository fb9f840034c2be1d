"""What of a checkpoint's tensors its class takes, and the dtype that they have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mobilekit.core import console

from .architecture import architecture
from .families import family_for_class
from .inspect import class_name, read_config, resolve
from .weights import TensorEntry, stored_dtype, tensor_table

Table = Mapping[str, TensorEntry]


@dataclass(frozen=True)
class Contents:
    """What a checkpoint says it is, before a weight is read.

    Attributes:
        path: Its directory.
        cls: The transformers class.
        config: Its config.
        table: The stored tensors that the class takes.
        dtype: What they are loaded in to keep every bit.
    """

    path: Path
    cls: type[Any]
    config: Any
    table: Table
    dtype: torch.dtype

    def tell_of_widening(self) -> None:
        """Say that a checkpoint of several dtypes is taken in one of them."""
        ordinary = ordinary_tensors(self.cls, self.table)
        dtypes = sorted({entry.dtype for entry in ordinary.values()})
        if len(dtypes) > 1:
            console.warn(
                f"{self.path} stores {' and '.join(dtypes)}; all of it is loaded as "
                f"{str(self.dtype).removeprefix('torch.')}, and takes that much when saved again"
            )


def read_contents(source: str | Path) -> Contents:
    """Look at a checkpoint; say aloud which of its tensors are left out.

    Raises:
        InvalidInputError: If a file is missing, damaged, or contradicts another.
        UnsupportedModelError: If no family covers the class, or the weights are quantized.
    """
    path = resolve(source)
    raw = read_config(path)
    cls, config = architecture(path, class_name(path, raw), raw)
    table = taken_tensors(path, cls, config)
    return Contents(path, cls, config, table, getattr(torch, common_dtype(cls, table)))


def used_and_unused(
    cls: type[Any], config: Any, table: Table
) -> tuple[dict[str, TensorEntry], dict[str, TensorEntry]]:
    """Split a checkpoint's tensors into those that the class has modules for, and the others.

    The others are those that its family expects there to be (see ``Family.unused``); a tensor that
    nobody expects is among the used ones, for the loader to refuse.
    """
    pattern = family_for_class(cls.__name__).unused
    if pattern is None:
        return dict(table), {}
    expression = re.compile(pattern(config))
    unused = {name: entry for name, entry in table.items() if expression.search(name)}
    return {name: entry for name, entry in table.items() if name not in unused}, unused


def taken_tensors(path: Path, cls: type[Any], config: Any) -> dict[str, TensorEntry]:
    """Return the tensors of a checkpoint that the class takes; say aloud what it does not.

    The config then says that there are no heads for multi-token prediction.

    Raises:
        InvalidInputError: If a file is missing or damaged.
        UnsupportedModelError: If the weights are quantized.
    """
    table, unused = used_and_unused(cls, config, tensor_table(path))
    if unused:
        size = sum(entry.nbytes for entry in unused.values()) / 1e6
        console.warn(
            f"{path} has {len(unused)} tensors for multi-token prediction ({next(iter(unused))}, "
            f"…; {size:.1f} MB), which transformers has no modules for: they are left out, and so "
            "they are of what is saved"
        )
        if hasattr(config, "num_nextn_predict_layers"):
            config.num_nextn_predict_layers = 0
    return table


def ordinary_tensors(cls: type[Any], table: Table) -> dict[str, TensorEntry]:
    """Return the tensors whose dtype the class leaves open.

    Others it keeps in float32 beside weights in half precision (routers, their corrections), so
    that of these alone nothing follows for the rest.
    """
    kept = list(cls._keep_in_fp32_modules_strict or ())
    if any(entry.dtype == "F16" for entry in table.values()):
        kept += cls._keep_in_fp32_modules or ()
    rest = {name: e for name, e in table.items() if not any(part in name for part in kept)}
    return rest or dict(table)


def common_dtype(cls: type[Any], table: Table) -> str:
    """Return the torch name of the dtype that a checkpoint is loaded in to keep every bit."""
    return stored_dtype(ordinary_tensors(cls, table))
