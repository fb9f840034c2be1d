"""Mamba-2 language models: a running state instead of a key-value cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import UnsupportedModelError
from mobilekit.models.modules.recurrent_program import recurrent_program

from .base import Counter, Family, Slice, UnitGroup

if TYPE_CHECKING:
    from torch import nn


def ssm_heads(model: nn.Module) -> list[UnitGroup]:
    """Return each layer's state-space heads.

    Raises:
        UnsupportedModelError: If heads share their B and C in several groups: a head is then no
            unit of its own.
    """
    layers: Any = model.get_submodule("backbone.layers")
    return [_heads(i, f"backbone.layers.{i}.mixer", layer.mixer) for i, layer in enumerate(layers)]


def _heads(layer: int, path: str, mixer: Any) -> UnitGroup:
    if mixer.n_groups != 1:
        raise UnsupportedModelError(
            f"the heads of layer {layer} lie in {mixer.n_groups} groups that share B and C",
            hint="Heads can be removed where n_groups is 1.",
        )
    dim, inner, shared = mixer.head_dim, mixer.intermediate_size, 2 * mixer.ssm_state_size
    rows = f"{path}.in_proj"  # z, x, B, C and dt, one after the other
    slices = [
        Slice(rows, "weight", width=dim),
        Slice(rows, "weight", width=dim, offset=inner, scored=True),
        Slice(rows, "weight", offset=2 * inner + shared),
        Slice(f"{path}.conv1d", "weight", width=dim),
        Slice(f"{path}.norm", "weight", width=dim),
        Slice(f"{path}.out_proj", "weight", dim=1, width=dim, scored=True),
        *(Slice(path, name) for name in ("dt_bias", "A_log", "D")),
    ]
    if mixer.conv1d.bias is not None:
        slices.append(Slice(f"{path}.conv1d", "bias", width=dim))
    if mixer.in_proj.bias is not None:
        slices += [Slice(rows, "bias", width=s.width, offset=s.offset) for s in slices[:3]]
    return UnitGroup(
        kind="ssm",
        layer=layer,
        count=mixer.num_heads,
        minimum=1,
        slices=tuple(slices),
        counters=(
            Counter(path, "num_heads"),
            Counter(path, "intermediate_size", per_unit=dim),
            *(
                Counter(f"{path}.conv1d", name, per_unit=dim, fixed=shared)
                for name in ("in_channels", "out_channels", "groups")
            ),
            Counter(path, "conv_dim", per_unit=dim, fixed=shared),
            Counter(rows, "out_features", per_unit=2 * dim + 1, fixed=shared),
            Counter(f"{path}.out_proj", "in_features", per_unit=dim),
            Counter(f"{path}.norm", "group_size", per_unit=dim),
        ),
    )


MAMBA2 = Family(
    name="mamba2",
    classes=("Mamba2ForCausalLM",),
    task="causal-lm",
    program=recurrent_program,
    units_of={"ssm": ssm_heads},
    is_recurrent=True,
)
