"""Load and save checkpoints: ``config.json`` + safetensors + ``plan.json``.

``load`` knows no method: it builds the architecture on the meta device from the config, replays
the edits of ``plan.json`` that the config cannot say, then loads the weights bit-exactly.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from mobilekit.core import console
from mobilekit.core.device import choose_device, choose_dtype
from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import atomic_directory, atomic_write_json, unserialized
from mobilekit.schema.plan import PLAN_FILE, Plan, read_plans

from .architecture import (
    architecture,
    filled,
    quiet_transformers,
    skeleton_of,
    untied_weights,
)
from .contents import common_dtype, read_contents, used_and_unused
from .families import family_of
from .inspect import (
    CARD_FILE,
    GENERATION_FILE,
    TOKENIZER_FILES,
    class_name,
    licences,
    read_config,
    resolve,
)
from .lineage import Provenance, provenance, record
from .modules.rotary import rotary_limit
from .weights import tensor_table


def load(source: str | Path, device: str = "auto", dtype: str = "auto") -> nn.Module:
    """Load a checkpoint in eval mode.

    Args:
        source: Checkpoint directory, "embedded", or a hub id that is in the local cache.
        device: Where the weights go; "auto" takes a GPU where there is one.
        dtype: "auto" keeps the stored dtype, hence every bit (of mixed dtypes the widest, which
            holds every value).

    Returns:
        The model, an instance of the ``transformers`` class that its config names, with its
        provenance recorded.

    Raises:
        InvalidInputError: If a file is missing, damaged, or contradicts another, or a weight is
            not finite.
        UnsupportedModelError: If no family covers the class, or the weights are quantized.
    """
    path = resolve(source)
    target, wanted = choose_device(device), choose_dtype(dtype)
    found = read_contents(path)
    plans = stored_plans(path)
    if wanted is None:
        found.tell_of_widening()
    model = filled(path, found.cls, found.config, plans, found.table, wanted or found.dtype)
    _check_finite(path, model)
    read_generation_config(path, model)
    model.to(target)
    _choose_experts(model, target)
    record(model, Provenance(path, tuple(plans)))
    return model


def _choose_experts(model: nn.Module, device: torch.device) -> None:
    """On a CPU, let each expert run on its own tokens.

    transformers' default for MoE layers, one grouped product, is as fast alone but many times
    slower where cores are shared or gradients flow (6 times in recovery training).
    """
    if device.type == "cpu" and "expert" in family_of(model).units_of:
        model.set_experts_implementation("eager")  # type: ignore[operator]


def save(model: nn.Module, out: str | Path, *, tokenizer_from: str | Path | None = None) -> Path:
    """Write a checkpoint directory, whole or not at all.

    Args:
        model: The model; its record of provenance then points to ``out``.
        out: Directory to create.
        tokenizer_from: Where the tokenizer files come from; the model's own source where ``None``.

    Returns:
        ``out`` as a path.

    Raises:
        UsageError: If ``out`` exists and is not empty.
        OutputError: If it cannot be written.
    """
    target = Path(out)
    history = provenance(model)
    origin = resolve(tokenizer_from) if tokenizer_from is not None else history.source
    with atomic_directory(target) as folder:
        _write_weights(model, folder, target)
        if history.plans:
            atomic_write_json(folder / PLAN_FILE, [plan.to_json() for plan in history.plans])
        if origin is not None and origin.is_dir():
            copy_companions(origin, folder)
        elif origin is not None:
            console.warn(f"{origin} is gone, so {target} has no tokenizer")
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner only
    record(model, Provenance(target, history.plans))
    return target


def _write_weights(model: Any, folder: Path, target: Path) -> None:
    try:
        with quiet_transformers():
            model.save_pretrained(folder)
    except SafetensorError as error:
        raise unserialized(target, error) from None


def describe(source: str | Path | nn.Module) -> dict[str, Any]:
    """Return the size of a model or checkpoint; of the latter no weight is read.

    Returns:
        ``class``; ``parameters`` (tied ones once); ``active_parameters`` (those that one token
        uses: of the routed experts only the router's top-k); ``weight_bytes``; ``dtype``.
    """
    if isinstance(source, nn.Module):
        return _facts(source, str(next(source.parameters()).dtype).removeprefix("torch."))
    path = resolve(source)
    raw = read_config(path)
    name = class_name(path, raw)
    cls, config = architecture(path, name, raw)
    table, _ = used_and_unused(cls, config, tensor_table(path))
    skeleton = skeleton_of(path, cls, config, stored_plans(path), table)
    facts = _facts(skeleton, common_dtype(cls, table))
    own = sum(math.prod(table[name].shape) for name in untied_weights(skeleton, table))
    return {
        **facts,
        "parameters": facts["parameters"] + own,
        "active_parameters": facts["active_parameters"] + own,
        "weight_bytes": sum(entry.nbytes for entry in table.values()),
    }


def max_positions(source: str | Path) -> int | None:
    """Return how many positions a checkpoint's model has; ``None`` if its state has no length.

    Where rotary frequencies change at some length, a program of the model ends there.

    Raises:
        InvalidInputError: If the config cannot be read.
        UnsupportedModelError: If no family covers the class.
    """
    path = resolve(source)
    raw = read_config(path)
    _, config = architecture(path, class_name(path, raw), raw)
    bounds = (getattr(config, "max_position_embeddings", None), rotary_limit(config))
    return min((bound for bound in bounds if bound is not None), default=None)


def stored_plans(path: Path) -> list[Plan]:
    """Return the plans that a checkpoint says were applied to it, in order."""
    return read_plans(path / PLAN_FILE) if (path / PLAN_FILE).is_file() else []


def _facts(model: nn.Module, dtype: str) -> dict[str, Any]:
    total = sum(p.numel() for p in model.parameters())
    return {
        "class": type(model).__name__,
        "parameters": total,
        "active_parameters": total - _idle_parameters(model),
        "weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in _stored(model)),
        "dtype": dtype,
    }


def _stored(model: nn.Module) -> list[torch.Tensor]:
    """Return what a checkpoint holds of a model: parameters, and buffers that are not derived."""
    names = model.state_dict().keys()
    buffers = [buffer for name, buffer in model.named_buffers() if name in names]
    return [*model.parameters(), *buffers]


def _idle_parameters(model: nn.Module) -> int:
    """Return how many routed-expert parameters a token does not use."""
    family = family_of(model)
    idle = 0
    for group in family.units(model, "expert") if "expert" in family.units_of else []:
        active = group.count if group.active is None else group.active
        idle += (group.count - active) * group.own_size(model)
    return idle


def _check_finite(path: Path, model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        finite = tensor.isfinite()
        if not bool(finite.all()):
            count, first = int((~finite).sum()), (~finite).nonzero()[0].tolist()
            held = "a value that is" if count == 1 else f"{count} values that are"
            place = "at" if count == 1 else "the first at"
            raise InvalidInputError(
                f"{name} in {path} holds {held} NaN or infinite, {place} {first}",
                hint="The checkpoint is damaged, or its training diverged: use another one.",
            )


def read_generation_config(path: Path, model: Any) -> None:
    """Give a model the generation settings that lie beside its weights, if any do.

    Raises:
        InvalidInputError: If they cannot be read.
    """
    if (path / GENERATION_FILE).is_file():
        from transformers import GenerationConfig

        try:
            with quiet_transformers():
                model.generation_config = GenerationConfig.from_pretrained(
                    path, local_files_only=True
                )
        except (OSError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{path / GENERATION_FILE} cannot be read: {' '.join(str(error).split())[:160]}",
                hint="Restore the file, or remove it: it is optional.",
            ) from None


def copy_companions(origin: Path, folder: Path) -> None:
    """Copy tokenizer and licences beside the weights."""
    texts = [file.name for file in origin.glob("*LICEN[CS]E*")]
    for name in (*TOKENIZER_FILES, *texts):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    if named := licences(origin):
        # the rest of the card tells of the model as it was, so only its licence goes along
        header = f"---\nlicense: {json.dumps(named[0] if len(named) == 1 else list(named))}\n---\n"
        note = f"Made from {origin.name} by MobileKit; its licence holds for this model too.\n"
        (folder / CARD_FILE).write_text(header + note, encoding="utf-8")
