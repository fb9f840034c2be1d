"""Build a model from its config and fill it: the only place that leans on transformers' loader.

The config decides shapes and nothing else: which files are read, which code runs and which
kernels are used is ours to say.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mobilekit.core.errors import InvalidInputError, MobileKitError, UnsupportedModelError
from mobilekit.schema.plan import PLAN_FILE, Plan, RemoveEdit

from . import surgery
from .families import family_of
from .modules.uneven import rebuild_slots_
from .weights import TensorEntry

# what a config may not decide: code from elsewhere, other files, kernels from the hub
_IGNORED_KEYS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "fusion_config",
    "kernel_config",
    "transformers_weights",
}
_LAYER = re.compile(r"\blayers\.(\d+)\.")
# what transformers raises for a config that it cannot make a model of
_CONFIG_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def architecture(path: Path, name: str, raw: dict[str, Any]) -> tuple[type[nn.Module], Any]:
    """Return the transformers class and its config, made of plain values only.

    Raises:
        InvalidInputError: If the config is of another model type, or cannot be read.
        UnsupportedModelError: If it says that the weights are quantized.
    """
    import transformers

    cls = getattr(transformers, name)
    settings = {k: v for k, v in raw.items() if k not in _IGNORED_KEYS and not k.startswith("_")}
    if settings.pop("quantization_config", None) is not None:
        raise UnsupportedModelError(
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


def skeleton_of(
    path: Path,
    cls: type[Any],
    config: Any,
    plans: Sequence[Plan],
    table: Mapping[str, TensorEntry],
) -> nn.Module:
    """Return the architecture on the meta device, edits replayed.

    Raises:
        InvalidInputError: If the config or ``plan.json`` cannot be true.
    """
    _check_depth(path, config, plans, table)
    with _config_errors(path, cls.__name__), torch.device("meta"):
        model: nn.Module = cls(config)
        _check_top_k(path, model)
    try:
        surgery.replay_(model, plans)
    except MobileKitError as error:
        raise InvalidInputError(f"{path / PLAN_FILE}: {error.message}", hint=error.hint) from None
    return model


def filled(
    path: Path,
    cls: type[Any],
    config: Any,
    plans: Sequence[Plan],
    table: Mapping[str, TensorEntry],
    dtype: torch.dtype,
) -> nn.Module:
    """Return the model with its weights; transformers maps the names, we choose the files.

    Args:
        path: The checkpoint, for messages and ``plan.json``.
        cls: The transformers class.
        config: Its config.
        plans: Plans whose edits to replay before the weights are loaded.
        table: Every stored tensor that the class takes.
        dtype: Dtype of the result.

    Raises:
        InvalidInputError: If config, plans and weights do not belong together.
    """
    skeleton = skeleton_of(path, cls, config, plans, table)
    check_table(path, skeleton, table)
    built = _replaying(cls, plans)
    files = sorted({entry.file for entry in table.values()})
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_transformers())
        try:
            opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        except SafetensorError as error:
            raise InvalidInputError(
                f"weights of {path} cannot be read: {error}", hint="Copy the checkpoint again."
            ) from None
        tensors = {
            name: file.get_slice(name)
            for file in opened
            for name in file.keys()  # noqa: SIM118 - no mapping
            if name in table
        }
        # "eager" where a class cannot use the fused kernel (capped scores, no attention at all)
        attention = "sdpa" if cls._supports_sdpa else "eager"
        model: nn.Module = built.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, attn_implementation=attention
        )
    model.__class__ = cls
    rebuild_slots_(model)
    if untied_weights(skeleton, table):
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    return model.eval()


def untied_weights(model: Any, table: Mapping[str, TensorEntry]) -> list[str]:
    """Return the weights that the config ties to others, but that are stored with other values.

    transformers loads such a weight as it is stored.
    """
    tied = model.all_tied_weights_keys.items()
    stored = [(name, source) for name, source in tied if name in table and source in table]
    return [
        name
        for name, source in stored
        if not torch.equal(_stored(name, table), _stored(source, table))
    ]


def _stored(name: str, table: Mapping[str, TensorEntry]) -> torch.Tensor:
    with safe_open(table[name].file, "pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
        return tensor


def _replaying(cls: type[Any], plans: Sequence[Plan]) -> type[Any]:
    """Return ``cls`` with a constructor that replays ``plans``, so that weights load after them."""
    if not plans:
        return cls

    def construct(self: nn.Module, config: Any) -> None:
        cls.__init__(self, config)
        surgery.replay_(self, plans)

    return type(cls.__name__, (cls,), {"__init__": construct, "__module__": cls.__module__})


def _check_depth(
    path: Path, config: Any, plans: Sequence[Plan], table: Mapping[str, TensorEntry]
) -> None:
    """Refuse, before they are built, layers of which no tensor is stored and none was removed."""
    asked = getattr(config, "num_hidden_layers", None)
    stored = {match[1] for name in table if (match := _LAYER.search(name))}
    cut = {str(e.layer) for plan in plans for e in plan.edits if isinstance(e, RemoveEdit)}
    if stored and isinstance(asked, int) and asked > len(stored | cut):
        raise InvalidInputError(
            f"{path} holds tensors of {len(stored)} layers, but config.json asks for {asked}",
            hint="The config and the weights do not belong together: restore both.",
        )


def _check_top_k(path: Path, model: nn.Module) -> None:
    """Refuse a router that is to choose more experts than there are, or none."""
    family = family_of(model)
    for group in family.units(model, "expert") if "expert" in family.units_of else ():
        active = group.count if group.active is None else group.active
        if active < 1 or group.minimum > group.count:
            is_more = group.minimum > max(1, active)
            implied = f", and so for {group.minimum} a layer" if is_more else ""
            raise InvalidInputError(
                f"config.json of {path} asks for {active} experts a token{implied}, "
                f"it has {group.count}",
                hint="Restore config.json from the original checkpoint.",
            )


def check_table(path: Path, skeleton: Any, table: Mapping[str, TensorEntry]) -> None:
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
                _difference(path, name, given, asked),
                hint="The config and the weights do not belong together: restore both.",
            )


def _difference(
    path: Path, name: str, given: tuple[int, ...] | None, asked: tuple[int, ...] | None
) -> str:
    if asked is None:
        return f"the weights of {path} hold {name}, which config.json has no place for"
    if given is None:
        return f"the weights of {path} lack {name}, but config.json asks for {list(asked)}"
    return f"{name} in {path} is {list(given)}, but config.json asks for {list(asked)}"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars and tables off the terminal: our errors say it in two lines."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
