"""Routed experts in fused tensors: where they lie, and all that follows their number.

The blocks are found by looking at the modules; the config's own rule is a cross-check. Every tensor
of a block has to be known by name, since one that nobody cuts would leave a model that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import InvalidInputError, UnsupportedModelError

from .base import Counter, Slice, UnitGroup

if TYPE_CHECKING:
    from torch import nn

_ROUTERS = ("gate", "router")
_COUNTERS = ("num_experts", "num_local_experts", "n_routed_experts")
# a container's tensor, experts in dimension 0 → whether it is the expert's own weight: biases
# never enter a score
_EXPERT_TENSORS = {
    "gate_up_proj": True,
    "down_proj": True,
    "gate_up_proj_bias": False,
    "down_proj_bias": False,
}
# a router's tensor → the dimension along which the experts lie
_ROUTER_TENSORS = {
    "weight": 0,
    "bias": 0,
    "e_score_correction_bias": 0,
    "moe_statics.e_score_correction_bias": 1,
}


@dataclass(frozen=True)
class SparseBlock:
    """One block of routed experts.

    Attributes:
        layer: Index of its layer.
        path: Its path in the model.
        router_name: Name of the router in it.
        module: The block itself.
    """

    layer: int
    path: str
    router_name: str
    module: Any

    @property
    def router(self) -> Any:
        """The router."""
        return getattr(self.module, self.router_name)

    @property
    def experts(self) -> Any:
        """The container of the experts' fused tensors."""
        return self.module.experts


def sparse_blocks(model: nn.Module) -> list[SparseBlock]:
    """Return every block of a decoder that has a router and a container of experts."""
    layers: Any = model.get_submodule("model.layers")
    found = []
    for index, layer in enumerate(layers):
        for name, block in layer.named_children():
            router = next((n for n in _ROUTERS if _has_rows(getattr(block, n, None))), None)
            if router is not None and hasattr(block, "experts"):
                found.append(SparseBlock(index, f"model.layers.{index}.{name}", router, block))
    return found


def _has_rows(router: Any) -> bool:
    weight = getattr(router, "weight", None)
    return weight is not None and weight.dim() == 2


@dataclass(frozen=True)
class Grouping:
    """How a router limits its choice to groups of experts that lie side by side.

    Attributes:
        groups: How many groups there are; 1 where the router chooses among all experts.
        chosen: How many of them a token's experts come from.
        smallest: Experts that a group must have for the router to score it.
    """

    groups: int = 1
    chosen: int = 1
    smallest: int = 1


def ungrouped(_router: Any) -> Grouping:
    """Choose among all experts."""
    return Grouping()


def grouped_by_best_two(router: Any) -> Grouping:
    """Score a group by the sum of its best two experts, even where there is one group only."""
    return Grouping(router.num_group, router.topk_group, smallest=2)


def every_layer(_config: Any, _layer: int) -> bool:
    """Say that each layer has experts."""
    return True


def after_dense_layers(config: Any, layer: int) -> bool:
    """Say that all layers but the first ``first_k_dense_replace`` have experts."""
    return bool(layer >= config.first_k_dense_replace)


def later_layers(config: Any) -> str:
    """Return the pattern of the tensors of layers after the last, which predict further tokens."""
    first = config.num_hidden_layers
    layers = range(first, first + int(config.num_nextn_predict_layers or 0))
    return rf"^model\.layers\.({'|'.join(map(str, layers))})\." if layers else r"(?!)"


@dataclass(frozen=True)
class ExpertLayout:
    """What a class does in its own way about its experts.

    Attributes:
        count_field: Key of ``config.json`` that says how many experts a layer has.
        is_sparse: The config's own rule: whether a layer (by index) has experts.
        grouping: Reads the groups of a router.
    """

    count_field: str
    is_sparse: Callable[[Any, int], bool] = every_layer
    grouping: Callable[[Any], Grouping] = ungrouped

    def units(self, model: nn.Module) -> list[UnitGroup]:
        """Return one group a sparse layer; dense layers have none.

        Raises:
            UnsupportedModelError: If a block has a tensor that is not known, or other layers are
                sparse than the config says.
            InvalidInputError: If the experts do not make up the groups that the config asks for.
        """
        blocks = sparse_blocks(model)
        self._check_layers(model, [block.layer for block in blocks])
        return [self._group(block) for block in blocks]

    def set_count(self, model: Any, count: int) -> None:
        """Write the number of experts that all layers now have where transformers reads it.

        Raises:
            UnsupportedModelError: If the config does not store it.
        """
        # any other name would make an attribute that nobody reads, or be an alias that is not saved
        if self.count_field not in model.config.to_dict():
            raise UnsupportedModelError(
                f"the config of {type(model).__name__} does not store its number of experts as "
                f"'{self.count_field}'",
                hint="Use a version of transformers that MobileKit names among its requirements.",
            )
        setattr(model.config, self.count_field, count)
        if hasattr(model, "num_experts"):
            model.num_experts = count  # the auxiliary loss reads this one

    def _check_layers(self, model: Any, found: list[int]) -> None:
        count = len(model.get_submodule("model.layers"))
        ruled = [layer for layer in range(count) if self.is_sparse(model.config, layer)]
        if found != ruled:
            raise UnsupportedModelError(
                f"{type(model).__name__} has experts in layers {found}, its config says {ruled}",
                hint="Build the model anew from its config.",
            )

    def _group(self, block: SparseBlock) -> UnitGroup:
        count = int(block.experts.gate_up_proj.shape[0])
        top_k = int(block.router.top_k)
        grouping = self.grouping(block.router)
        _check_grouping(block, grouping, count)
        fewest = max(grouping.smallest, -(-top_k // grouping.chosen))  # in each group
        return UnitGroup(
            kind="expert",
            layer=block.layer,
            count=count,
            minimum=grouping.groups * fewest,
            slices=tuple(_slices(block)),
            counters=tuple(_counters(block)),
            partitions=grouping.groups,
            active=top_k,
        )


def _check_grouping(block: SparseBlock, grouping: Grouping, count: int) -> None:
    groups, chosen = grouping.groups, grouping.chosen
    whole = isinstance(groups, int) and isinstance(chosen, int)
    if not whole or not 1 <= chosen <= groups or count % groups:
        raise InvalidInputError(
            f"layer {block.layer} has {count} experts, which cannot be {groups} equal groups of "
            f"which {chosen} are chosen",
            hint="Restore config.json (n_group, topk_group) from the original checkpoint.",
        )


def _slices(block: SparseBlock) -> Iterator[Slice]:
    """Yield every per-expert tensor of a block.

    Raises:
        UnsupportedModelError: If there is one that no table knows.
    """
    experts, router = f"{block.path}.experts", f"{block.path}.{block.router_name}"
    for name in _tensors(block.experts):
        yield Slice(experts, name, scored=_known(_EXPERT_TENSORS, name, experts))
    for name in _tensors(block.router):
        dim = _known(_ROUTER_TENSORS, name, router)
        owner, _, own = f"{router}.{name}".rpartition(".")
        yield Slice(owner, own, dim=dim)
    for name in _tensors(block.module, recurse=False):
        _known({}, name, block.path)


def _tensors(module: nn.Module, *, recurse: bool = True) -> list[str]:
    parameters = module.named_parameters(recurse=recurse)
    return [name for name, _ in (*parameters, *module.named_buffers(recurse=recurse))]


def _known(table: dict[str, Any], name: str, path: str) -> Any:
    if name not in table:
        raise UnsupportedModelError(
            f"{path} has a tensor '{name}', which is not known",
            hint="Its experts cannot be removed without knowing what it holds.",
        )
    return table[name]


def _counters(block: SparseBlock) -> Iterator[Counter]:
    owners = {
        block.path: block.module,
        f"{block.path}.experts": block.experts,
        f"{block.path}.{block.router_name}": block.router,
    }
    for path, module in owners.items():
        for name in _COUNTERS:
            if isinstance(getattr(module, name, None), int):
                yield Counter(path, name)
