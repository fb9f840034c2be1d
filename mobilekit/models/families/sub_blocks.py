"""The parts of a decoder layer that can go as a whole: its attention, its MLP, with their norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import UnsupportedModelError
from mobilekit.models.modules.removed import RemovedAttention, RemovedMLP, has_attention

from .base import SubBlock

if TYPE_CHECKING:
    from torch import nn

_ATTENTION_AROUND = ("input_layernorm", "resid_attn_dropout")
_MLP_AROUND = ("pre_feedforward_layernorm", "post_feedforward_layernorm", "resid_mlp_dropout")
_BETWEEN = "post_attention_layernorm"  # of the attention where the MLP has a norm of its own


def attention_blocks(model: nn.Module) -> list[SubBlock]:
    """Return the attention of every layer that has one, with its norms.

    Raises:
        UnsupportedModelError: If a layer has a tensor that is not known.
    """
    layers: Any = model.get_submodule("model.layers")
    return [
        _block("attention", index, layer, partial(RemovedAttention, layer.self_attn.layer_idx))
        for index, layer in enumerate(layers)
        if has_attention(layer)
    ]


def mlp_blocks(model: nn.Module) -> list[SubBlock]:
    """Return the MLP of every layer that has one, with its norms.

    Raises:
        UnsupportedModelError: If a layer has a tensor that is not known.
    """
    layers: Any = model.get_submodule("model.layers")
    return [
        _block("mlp", index, layer, RemovedMLP)
        for index, layer in enumerate(layers)
        if not isinstance(layer.mlp, RemovedMLP)
    ]


def _block(kind: str, index: int, layer: Any, stand_in: Callable[[], nn.Module]) -> SubBlock:
    path, parts = f"model.layers.{index}", dict(layer.named_children())
    known = {"self_attn", "mlp", "block_sparse_moe", _BETWEEN, *_ATTENTION_AROUND, *_MLP_AROUND}
    own = [name for name, _ in layer.named_parameters(recurse=False)]
    if unknown := [*sorted(parts.keys() - known), *own]:
        raise UnsupportedModelError(
            f"{path} has a part '{unknown[0]}', which is not known",
            hint="Nothing of the layer can be removed without knowing what it does.",
        )
    is_attention = kind == "attention"
    around = list(_ATTENTION_AROUND if is_attention else _MLP_AROUND)
    if is_attention == (_MLP_AROUND[0] in parts):
        around.append(_BETWEEN)
    return SubBlock(
        kind=kind,
        layer=index,
        path=f"{path}.{'self_attn' if is_attention else 'mlp'}",
        around=tuple(f"{path}.{name}" for name in around if name in parts),
        stand_in=stand_in,
    )


ATTENTION_BLOCKS = {"attention": attention_blocks}
DENSE_BLOCKS = {**ATTENTION_BLOCKS, "mlp": mlp_blocks}
