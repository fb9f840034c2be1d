"""Load and save checkpoints: ``config.json`` + safetensors + ``plan.json``.

``load`` knows no method: it builds the architecture on the meta device from the config, replays
the edits of ``plan.json`` that the config cannot say, then loads the weights bit-exactly.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mobilekit.core.device import choose_device, choose_dtype
from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import atomic_directory, atomic_write_json
from mobilekit.schema.plan import PLAN_FILE, Plan, read_plans

from . import surgery
from .families import family_of
from .inspect import (
    GENERATION_FILE,
    TOKENIZER_FILES,
    TensorEntry,
    class_name,
    read_config,
    resolve,
    stored_dtype,
    tensor_table,
)
from .lineage import Provenance, provenance, record

# what a config may not decide: code from elsewhere, other files, kernels from the hub
_IGNORED_KEYS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "fusion_config",
    "kernel_config",
    "transformers_weights",
}
# what transformers raises for a config that it cannot make a model of
_CONFIG_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
    raw = read_config(path)
    name = class_name(path, raw)
    table = tensor_table(path)
    plans = stored_plans(path)
    cls, config = _architecture(path, name, raw)
    stored: torch.dtype = getattr(torch, stored_dtype(table))
    model = _filled(path, cls, config, plans, table, wanted or stored)
    _check_finite(path, model)
    _read_generation_config(path, model)
    model.to(target)
    record(model, Provenance(path, tuple(plans)))
    return model


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
        with _quiet_transformers():
            model.save_pretrained(folder)  # type: ignore[operator]
        if history.plans:
            atomic_write_json(folder / PLAN_FILE, [plan.to_json() for plan in history.plans])
        if origin is not None:
            _copy_companions(origin, folder)
    record(model, Provenance(target, history.plans))
    return target


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
    table = tensor_table(path)
    cls, config = _architecture(path, name, raw)
    facts = _facts(_skeleton(path, cls, config, stored_plans(path)), stored_dtype(table))
    return {**facts, "weight_bytes": sum(entry.nbytes for entry in table.values())}


def stored_plans(path: Path) -> list[Plan]:
    """Return the plans that a checkpoint says were applied to it, in order."""
    return read_plans(path / PLAN_FILE) if (path / PLAN_FILE).is_file() else []


def _facts(model: nn.Module, dtype: str) -> dict[str, Any]:
    total = sum(p.numel() for p in model.parameters())
    return {
        "class": type(model).__name__,
        "parameters": total,
        "active_parameters": total - _idle_parameters(model),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "dtype": dtype,
    }


def _idle_parameters(model: nn.Module) -> int:
    """Return how many routed-expert parameters a token does not use."""
    family = family_of(model)
    idle = 0
    for group in family.units(model, "expert") if "expert" in family.units_of else []:
        size = sum(tensor[0].numel() for tensor in group.scored_tensors(model))
        idle += (group.count - group.minimum) * size
    return idle


def _architecture(path: Path, name: str, raw: dict[str, Any]) -> tuple[type[nn.Module], Any]:
    """Return the transformers class and its config, made of plain values only."""
    import transformers

    cls = getattr(transformers, name)
    settings = {k: v for k, v in raw.items() if k not in _IGNORED_KEYS and not k.startswith("_")}
    if settings.pop("quantization_config", None) is not None:
        raise InvalidInputError(
            f"{path} is a quantized checkpoint (config.json has 'quantization_config')",
            hint="Start from the float checkpoint; quantize when you export.",
        )
    if settings.get("model_type") != cls.config_class.model_type:
        raise InvalidInputError(
            f"config.json of {path} has model_type {settings.get('model_type')!r}, "
            f"but {name} needs '{cls.config_class.model_type}'",
            hint="Restore config.json from the original checkpoint.",
        )
    with _config_errors(path, name):
        return cls, cls.config_class.from_dict(settings)


@contextlib.contextmanager
def _config_errors(path: Path, name: str) -> Iterator[None]:
    """Turn what transformers makes of a bad config into two lines."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (*_CONFIG_ERRORS, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InvalidInputError(
            f"config.json of {path} does not describe a {name}: {reason}",
            hint="Restore config.json from the original checkpoint.",
        ) from error


def _skeleton(path: Path, cls: type[Any], config: Any, plans: Sequence[Plan]) -> nn.Module:
    """Return the architecture on the meta device, edits replayed."""
    with _config_errors(path, cls.__name__), torch.device("meta"):
        model: nn.Module = cls(config)
    surgery.replay_(model, plans)
    return model


def _filled(
    path: Path,
    cls: type[Any],
    config: Any,
    plans: Sequence[Plan],
    table: Mapping[str, TensorEntry],
    dtype: torch.dtype,
) -> nn.Module:
    """Return the model with its weights; transformers maps the names, we choose the files."""
    skeleton = _skeleton(path, cls, config, plans)
    _check_table(path, skeleton, table)
    built = _replaying(cls, plans)
    files = sorted({entry.file for entry in table.values()})
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet_transformers())
        try:
            opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        except SafetensorError as error:
            raise InvalidInputError(
                f"weights of {path} cannot be read: {error}", hint="Copy the checkpoint again."
            ) from None
        tensors = {name: file.get_slice(name) for file in opened for name in file.keys()}  # noqa: SIM118 - no mapping
        model: nn.Module = built.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, attn_implementation="sdpa"
        )
    model.__class__ = cls
    return model.eval()


def _replaying(cls: type[Any], plans: Sequence[Plan]) -> type[Any]:
    """Return ``cls`` with a constructor that replays ``plans``, so that weights load after them."""
    if not plans:
        return cls

    def construct(self: nn.Module, config: Any) -> None:
        cls.__init__(self, config)  # type: ignore[misc]
        surgery.replay_(self, plans)

    return type(cls.__name__, (cls,), {"__init__": construct, "__module__": cls.__module__})


def _check_table(path: Path, skeleton: Any, table: Mapping[str, TensorEntry]) -> None:
    """Hold the stored names and shapes against those that the architecture asks for.

    Raises:
        InvalidInputError: With the first tensor, in order of name, that differs.
    """
    from transformers.core_model_loading import revert_weight_conversion

    tied = set(skeleton.all_tied_weights_keys)
    held = {k: v for k, v in skeleton.state_dict().items() if k not in tied}
    expected = {k: tuple(v.shape) for k, v in revert_weight_conversion(skeleton, held).items()}
    for name in sorted(expected.keys() | (table.keys() - tied)):
        asked = expected.get(name)
        given = table[name].shape if name in table else None
        if given != asked:
            raise InvalidInputError(
                f"{name} in {path} is {_shown(given)}, but config.json asks for {_shown(asked)}",
                hint="The config and the weights do not belong together: restore both.",
            )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _check_finite(path: Path, model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        finite = parameter.isfinite()
        if not bool(finite.all()):
            first = (~finite).nonzero()[0].tolist()
            raise InvalidInputError(
                f"{name} in {path} holds {int((~finite).sum())} values that are NaN or infinite, "
                f"the first at {first}",
                hint="The checkpoint is damaged, or its training diverged: use another one.",
            )


def _read_generation_config(path: Path, model: Any) -> None:
    if (path / GENERATION_FILE).is_file():
        from transformers import GenerationConfig

        try:
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
        except (OSError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{path / GENERATION_FILE} cannot be read: {' '.join(str(error).split())[:160]}",
                hint="Restore the file, or remove it: it is optional.",
            ) from None


def _copy_companions(origin: Path, folder: Path) -> None:
    """Copy tokenizer, generation settings and licences beside the weights."""
    licences = [file.name for file in origin.glob("*LICEN[CS]E*")]
    for name in (*TOKENIZER_FILES, GENERATION_FILE, *licences):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars and tables off the terminal: our errors say it in two lines."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
