"""Attention heads and MLP channels: where they lie, and all that follows their number.

Both are found by looking at the modules, and sizes are read off the projections. Every tensor of a
module has to be known by name, since one that nobody cuts would leave a model that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import UnsupportedModelError
from mobilekit.models.modules.removed import RemovedMLP, has_attention
from mobilekit.models.modules.uneven import arrange_heads_, kept_index, stock_index

from .base import Counter, Slice, UnitGroup, UnitKind

if TYPE_CHECKING:
    from torch import nn

_QUERY, _FUSED = "q_proj", "qkv_proj"
_FUSED_MLP = "gate_up_proj"
_HEAD_NORMS = ("q_norm.weight", "k_norm.weight")  # over one head, so the same for all
_ATTENTION = {
    *(f"{name}.{kind}" for name in ("q_proj", "k_proj", "v_proj") for kind in ("weight", "bias")),
    *("qkv_proj.weight", "qkv_proj.bias", "o_proj.weight", "o_proj.bias"),
    *_HEAD_NORMS,
}
_MLP = {
    *(f"{name}.{kind}" for name in ("gate_proj", "up_proj") for kind in ("weight", "bias")),
    *("gate_up_proj.weight", "gate_up_proj.bias", "down_proj.weight", "down_proj.bias"),
}


@dataclass(frozen=True)
class AttentionHeads:
    """The heads of one attention module.

    Attributes:
        layer: Index of its layer.
        path: Its path in the model.
        module: The attention itself.
        count: Query heads, H.
        kv_count: Key-value heads, Hk.
        kv_index: For each query head the key-value head that it reads.
        is_stock: Whether those are as many for each, side by side.
    """

    layer: int
    path: str
    module: Any
    count: int
    kv_count: int
    kv_index: tuple[int, ...]
    is_stock: bool

    @property
    def head_dim(self) -> int:
        """Rows of the query projection that are one head."""
        return int(self.module.head_dim)

    @property
    def is_fused(self) -> bool:
        """Whether queries, keys and values are rows of one projection."""
        return hasattr(self.module, _FUSED)

    def rows(self, part: str) -> tuple[str, int]:
        """Return the projection that holds "q", "k" or "v", and the row where it begins."""
        if not self.is_fused:
            return f"{part}_proj", 0
        before = {"q": 0, "k": self.count, "v": self.count + self.kv_count}
        return _FUSED, before[part] * self.head_dim


def attentions(model: nn.Module) -> list[AttentionHeads]:
    """Return the attention of every layer that has one.

    Raises:
        UnsupportedModelError: If one has a tensor that is not known, or a norm across heads.
    """
    layers: Any = model.get_submodule("model.layers")
    return [
        _attention(index, f"model.layers.{index}.self_attn", layer.self_attn)
        for index, layer in enumerate(layers)
        if has_attention(layer)
    ]


def _attention(layer: int, path: str, module: Any) -> AttentionHeads:
    _check_known(path, module, _ATTENTION)
    dim = int(module.head_dim)
    for name in _HEAD_NORMS:
        norm = getattr(module, name.partition(".")[0], None)
        if norm is not None and norm.weight.numel() != dim:
            raise UnsupportedModelError(
                f"{path} normalizes queries and keys across heads",
                hint="Its heads cannot be removed without changing what the others compute.",
            )
    count = module.o_proj.weight.shape[1] // dim
    if hasattr(module, _FUSED):
        kv_count = (module.qkv_proj.weight.shape[0] // dim - count) // 2
    else:
        kv_count = module.k_proj.weight.shape[0] // dim
    kept = kept_index(module)
    index = tuple(stock_index(kv_count, count // kv_count)) if kept is None else kept
    return AttentionHeads(layer, path, module, count, kv_count, index, is_stock=kept is None)


def query_heads(model: nn.Module) -> list[UnitGroup]:
    """Return each layer's query heads; a head that has a key-value head to itself takes it along.

    Raises:
        UnsupportedModelError: As :func:`attentions`.
    """
    return [_query_heads(found) for found in attentions(model)]


def _query_heads(found: AttentionHeads) -> UnitGroup:
    if found.is_stock and found.count == found.kv_count:
        return _whole_heads("head", found)
    shares = found.kv_count if found.is_stock else 0
    return _group("head", found, found.count, 1, takes_kv=False, shares=shares)


def key_value_heads(model: nn.Module) -> list[UnitGroup]:
    """Return each layer's key-value heads, each with the query heads that read it.

    A layer whose query heads are uneven has none: they are no equal units.

    Raises:
        UnsupportedModelError: As :func:`attentions`.
    """
    return [_whole_heads("kv_head", found) for found in attentions(model) if found.is_stock]


def _whole_heads(kind: UnitKind, found: AttentionHeads) -> UnitGroup:
    return _group(kind, found, found.kv_count, found.count // found.kv_count, takes_kv=True)


def _group(
    kind: UnitKind,
    found: AttentionHeads,
    count: int,
    per_unit: int,
    *,
    takes_kv: bool,
    shares: int = 1,
) -> UnitGroup:
    """Return ``count`` units of ``per_unit`` query heads each, and of a key-value head or none."""
    dim = found.head_dim
    widths = {"q": per_unit * dim, **({"k": dim, "v": dim} if takes_kv else {})}
    slices: list[Slice] = []
    for part, width in widths.items():
        name, offset = found.rows(part)
        slices += _rows(found.module, found.path, name, width, offset)
    slices.append(Slice(f"{found.path}.o_proj", "weight", dim=1, width=per_unit * dim, scored=True))
    return UnitGroup(
        kind=kind,
        layer=found.layer,
        count=count,
        minimum=1,
        slices=tuple(slices),
        counters=tuple(_counters(found, widths, per_unit, takes_kv=takes_kv)),
        shares=shares,
        settle=partial(_settle, found, takes_kv),
    )


def _rows(module: Any, path: str, name: str, width: int, offset: int = 0) -> Iterator[Slice]:
    """Yield the rows of a projection that belong to the units, its bias included."""
    yield Slice(f"{path}.{name}", "weight", width=width, offset=offset, scored=True)
    if getattr(module, name).bias is not None:
        yield Slice(f"{path}.{name}", "bias", width=width, offset=offset)


def _counters(
    found: AttentionHeads, widths: dict[str, int], per_unit: int, *, takes_kv: bool
) -> Iterator[Counter]:
    path = found.path
    if found.is_fused:
        stays = 0 if takes_kv else 2 * found.kv_count * found.head_dim
        yield Counter(f"{path}.{_FUSED}", "out_features", sum(widths.values()), stays)
    else:
        for part, width in widths.items():
            yield Counter(f"{path}.{part}_proj", "out_features", width)
    yield Counter(f"{path}.o_proj", "in_features", widths["q"])
    if takes_kv and isinstance(getattr(found.module, "num_key_value_heads", None), int):
        yield Counter(path, "num_key_value_heads")


def _settle(found: AttentionHeads, takes_kv: bool, model: nn.Module, kept: Sequence[int]) -> None:
    """Tell the attention which key-value head each query head that is left reads."""
    if takes_kv:
        kv_count = len(kept)
        index: Sequence[int] = stock_index(kv_count, found.count // found.kv_count)
    else:
        kv_count, index = found.kv_count, [found.kv_index[head] for head in kept]
    module: Any = model.get_submodule(found.path)
    arrange_heads_(module, index, kv_count, reads_counts=found.is_fused)


def channels(model: nn.Module) -> list[UnitGroup]:
    """Return each layer's MLP channels: an output of gate and up, an input of down.

    Raises:
        UnsupportedModelError: If an MLP has a tensor that is not known.
    """
    layers: Any = model.get_submodule("model.layers")
    return [
        _channels(index, f"model.layers.{index}.mlp", layer.mlp)
        for index, layer in enumerate(layers)
        if not isinstance(layer.mlp, RemovedMLP)
    ]


def _channels(layer: int, path: str, mlp: Any) -> UnitGroup:
    _check_known(path, mlp, _MLP)
    count = int(mlp.down_proj.weight.shape[1])
    is_fused = hasattr(mlp, _FUSED_MLP)
    parts = [("gate_proj", 0), ("up_proj", 0)]
    if is_fused:
        parts = [(_FUSED_MLP, 0), (_FUSED_MLP, count)]
    slices = [piece for name, offset in parts for piece in _rows(mlp, path, name, 1, offset)]
    counters = [
        *(Counter(f"{path}.{name}", "out_features", 1 + is_fused) for name in dict(parts)),
        Counter(f"{path}.down_proj", "in_features"),
    ]
    if isinstance(getattr(mlp, "intermediate_size", None), int):
        counters.append(Counter(path, "intermediate_size"))
    return UnitGroup(
        kind="channel",
        layer=layer,
        count=count,
        minimum=1,
        slices=(*slices, Slice(f"{path}.down_proj", "weight", dim=1, scored=True)),
        counters=tuple(counters),
    )


def _check_known(path: str, module: nn.Module, known: set[str]) -> None:
    for name, _ in (*module.named_parameters(), *module.named_buffers()):
        if name not in known and not name.startswith("head_slots."):
            raise UnsupportedModelError(
                f"{path} has a tensor '{name}', which is not known",
                hint="Its units cannot be removed without knowing what it holds.",
            )
