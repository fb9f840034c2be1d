"""A checkpoint that is worked on file to file: its model on the meta device, its tensors on disk.

What ``load`` would give is all there but for the values: shapes, dtypes, config, plans. So whatever
asks a model for its structure works on it too, and no weight is ever in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .architecture import check_table, skeleton_of, untied_weights
from .checkpoint import read_generation_config, stored_plans
from .contents import read_contents
from .lineage import Provenance, record
from .weights import TensorEntry

Specs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint on disk.

    Attributes:
        path: Its directory.
        model: Its model as ``load`` gives it, on the meta device, with its provenance recorded.
        table: Every stored tensor by name.
    """

    path: Path
    model: nn.Module
    table: Mapping[str, TensorEntry]

    @property
    def files(self) -> list[Path]:
        """The safetensors files, sorted."""
        return sorted({entry.file for entry in self.table.values()})


def open_stored(source: str | Path) -> StoredModel:
    """Open a checkpoint without reading a weight.

    Args:
        source: Checkpoint directory, "embedded", or a hub id that is in the local cache.

    Raises:
        InvalidInputError: If a file is missing, damaged, or contradicts another.
        UnsupportedModelError: If no family covers the class, or the weights are quantized.
    """
    found = read_contents(source)
    path, cls, config, table, dtype = found.path, found.cls, found.config, found.table, found.dtype
    plans = stored_plans(path)
    found.tell_of_widening()

    def build() -> nn.Module:
        with _default_dtype(dtype):
            return skeleton_of(path, cls, config, plans, table)

    model = build()
    check_table(path, model, table)
    if untied_weights(model, table):
        config.tie_word_embeddings = False
        model = build()  # with parameters of their own
    _keep_wide_(model, dtype)
    read_generation_config(path, model)
    record(model, Provenance(path, tuple(plans)))
    return StoredModel(path, model.eval(), table)


def stored_specs(model: Any) -> Specs:
    """Return, on the meta device, every tensor that a checkpoint of ``model`` holds.

    The names, shapes, dtypes and the order are those of ``save_pretrained``.
    """
    from transformers.core_model_loading import revert_weight_conversion

    left_out = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}
    held = {name: t for name, t in model.state_dict().items() if name not in left_out}
    specs: Specs = revert_weight_conversion(model, held)
    return specs


class _default_dtype:  # noqa: N801 - a context manager that reads like a function
    """Build modules in a dtype, as transformers does when it loads."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)


def _keep_wide_(model: Any, dtype: torch.dtype) -> None:
    """Give those parameters and buffers float32 that transformers keeps so when it loads."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return
    pattern, group_of, _ = build_glob_alternation(list(plan))
    for name, tensor in model.state_dict(keep_vars=True).items():
        match = pattern.search(name)
        if match is not None and tensor.is_floating_point():
            wide = tensor.detach().to(plan[group_of[match.lastgroup or ""]])
            owner, _, attribute = name.rpartition(".")
            if isinstance(tensor, nn.Parameter):
                wide = nn.Parameter(wide, requires_grad=tensor.requires_grad)
            setattr(model.get_submodule(owner), attribute, wide)
