"""The family seam: all that the rest of MobileKit knows about a model's insides.

A family is one file. It says which classes it covers, where their units (experts, heads, blocks,
…) are, and how to wrap them for export. Methods and exporters ask the family, never the class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from mobilekit.core.errors import UnsupportedModelError
from mobilekit.schema.manifest import INTERFACES, Interface, Task, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

UnitKind = Literal["expert", "head", "kv_head", "channel", "block", "ssm", "image_token"]


@dataclass(frozen=True)
class Slice:
    """Part of a tensor that belongs to the units of a group, side by side along one dimension.

    Unit i has the indices from ``offset + i · width`` on, ``width`` of them: one for an expert in
    a fused tensor, a head's dimension for the rows of a query projection. A tensor that holds
    several things for each unit (Mamba-2's fused input projection) has one slice for each; what
    lies in no slice stays.

    Attributes:
        module: Path of the module that owns it, as ``model.get_submodule`` takes it.
        name: Name of the parameter or buffer in that module.
        dim: Dimension along which the units lie.
        width: Indices a unit.
        offset: Index where the first unit begins.
        scored: Whether it is the unit's own weight (an expert's matrix), not a row that merely
            addresses the unit (a router row).
    """

    module: str
    name: str
    dim: int = 0
    width: int = 1
    offset: int = 0
    scored: bool = False


@dataclass(frozen=True)
class Counter:
    """An attribute that says how large something is: ``fixed + per_unit · count``."""

    module: str
    attribute: str
    per_unit: int = 1
    fixed: int = 0


@dataclass(frozen=True)
class UnitGroup:
    """The units of one kind in one layer.

    Attributes:
        kind: Which kind they are.
        layer: Index of the layer.
        count: How many there are now.
        minimum: How many must stay for the layer to work (an MoE's top-k, or more where its
            router chooses groups first).
        partitions: Equal parts, side by side, that must all lose as many (groups of a
            group-limited router); what stays is a multiple of it.
        slices: Every tensor to cut when a unit goes.
        counters: Attributes that follow the count.
        active: How many one token uses (an MoE's top-k); ``None`` for all of them.
        shares: Into how many equal runs, side by side, the units fall that share something (query
            heads: a key-value head each); 1 where each unit is for itself, 0 where the runs are
            not equal any more.
        settle: Called with the model and the units kept once tensors and counters are cut, for
            what no counter can say.
    """

    kind: UnitKind
    layer: int
    count: int
    minimum: int
    slices: tuple[Slice, ...]
    counters: tuple[Counter, ...] = ()
    partitions: int = 1
    active: int | None = None
    shares: int = 1
    settle: Callable[[nn.Module, Sequence[int]], None] | None = field(default=None, compare=False)

    def own_size(self, model: nn.Module) -> int:
        """Return the parameters of one unit: its weights and biases, not what addresses it."""
        owners = {piece.module for piece in self.slices if piece.scored}
        size = 0
        for piece in self.slices:
            if piece.module in owners:
                tensor = getattr(model.get_submodule(piece.module), piece.name)
                size += tensor.numel() // tensor.shape[piece.dim] * piece.width
        return size

    def scored_tensors(self, model: nn.Module) -> list[Tensor]:
        """Return the units' own weights, each with the units in dimension 0."""
        found = []
        for piece in self.slices:
            if piece.scored:
                tensor = getattr(model.get_submodule(piece.module), piece.name)
                own = tensor.narrow(piece.dim, piece.offset, self.count * piece.width)
                own = own.movedim(piece.dim, 0)
                found.append(own if piece.width == 1 else own.unflatten(0, (self.count, -1)))
        return found


@dataclass(frozen=True)
class SubBlock:
    """A part of a layer that adds to the residual stream, and that can go as a whole.

    Attributes:
        kind: "attention" or "mlp".
        layer: Index of the layer.
        path: Path of the module.
        around: Paths of the modules that belong to it alone: its norms, its dropout.
        stand_in: Makes the module that takes its place.
    """

    kind: str
    layer: int
    path: str
    around: tuple[str, ...]
    stand_in: Callable[[], nn.Module] = field(compare=False)

    def holds(self, group: UnitGroup) -> bool:
        """Tell whether the units of a group are in it."""
        return any(f"{piece.module}.".startswith(f"{self.path}.") for piece in group.slices)


class StateForm(Enum):
    """How a program keeps what it remembers between calls; each back end has one it likes."""

    RESIDENT = "resident"  # buffers written by index: ExecuTorch
    EXPLICIT = "explicit"  # inputs and outputs, grown by concatenation: ONNX
    ARITHMETIC = "arithmetic"  # buffers written by in-place arithmetic: Core ML states


@dataclass(frozen=True)
class Phase:
    """Which program is wanted, for which inputs.

    Attributes:
        name: "forward" (any length), "prefill" or "decode" (fixed length), "step" (a denoiser).
        state: How it keeps its state; ``None`` where it remembers nothing (a denoiser's step).
        context_length: Positions that the state holds, 0 without one.
        length: Fixed number of new tokens, or ``None`` for a dynamic length.
    """

    name: str
    state: StateForm | None = None
    context_length: int = 0
    length: int | None = None


@dataclass(frozen=True)
class Program:
    """A module ready for capture, with what a back end must know about its interface.

    Attributes:
        module: Plain module; its ``forward`` takes ``example_inputs`` in order.
        example_inputs: Tensors, or (nested) lists of them, to capture with.
        dynamic_shapes: As ``torch.export.export`` takes it, or ``None``.
        inputs: Specs of the inputs, flattened, in order.
        outputs: Specs of the outputs, flattened, in order.
        states: Specs of the buffers that persist between calls.
        layers: Paths, inside ``module``, of the decoder layers or blocks, for diagnosis.
        is_recurrent: Whether its state is a running one (see :class:`Family`).
    """

    module: nn.Module
    example_inputs: tuple[Any, ...]
    dynamic_shapes: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...] = ()
    layers: tuple[str, ...] = ()
    is_recurrent: bool = False


@dataclass(frozen=True)
class Family:
    """What MobileKit knows about a group of classes that share one layout.

    Attributes:
        name: Id of the family, as in the registry.
        classes: Names of the ``transformers`` / ``diffusers`` classes it covers.
        task: What the model does, which fixes its bundle interface.
        units_of: For each kind of unit, the function that lists its groups, layer by layer.
        set_count: For each kind, the function that writes the new uniform count into the config.
        blocks_of: For each kind of sub-block, the function that lists those that can be removed.
        program: Builds the module to capture for a phase; ``None`` where there is an obstacle.
        is_recurrent: Whether the state is a running one: programs then take one token a call, and
            cannot go back to an earlier position but the first.
        obstacle: What keeps its models from being captured; ``None`` where nothing does.
        unused: Given a config, the pattern of those stored tensors that the classes have no
            module for (heads for multi-token prediction): they are left out when a checkpoint is
            loaded. ``None`` where every stored tensor must have its place.
    """

    name: str
    classes: tuple[str, ...]
    task: Task
    program: Callable[[nn.Module, Phase], Program] | None
    units_of: Mapping[str, Callable[[nn.Module], list[UnitGroup]]] = field(default_factory=dict)
    set_count: Mapping[str, Callable[[Any, int], None]] = field(default_factory=dict)
    blocks_of: Mapping[str, Callable[[nn.Module], list[SubBlock]]] = field(default_factory=dict)
    is_recurrent: bool = False
    obstacle: str | None = None
    unused: Callable[[Any], str] | None = None

    KINDS: ClassVar[tuple[str, ...]] = get_args(UnitKind)

    @property
    def interface(self) -> Interface:
        """The bundle interface that belongs to the task."""
        return INTERFACES[self.task]  # type: ignore[return-value]

    def units(self, model: nn.Module, kind: str) -> list[UnitGroup]:
        """Return the groups of one kind of unit, one a layer.

        Raises:
            UnsupportedModelError: If this family has no such units.
        """
        if kind not in self.units_of:
            raise UnsupportedModelError(
                f"{type(model).__name__} (family {self.name}) has no {kind}s",
                hint=_families_with(kind),
            )
        return self.units_of[kind](model)

    def check_exportable(self) -> None:
        """Check that programs of this family can be captured.

        Raises:
            UnsupportedModelError: If they cannot; with what is in the way, and what works.
        """
        if self.obstacle is not None:
            raise UnsupportedModelError(
                f"models of family {self.name} cannot be exported yet: {self.obstacle}",
                hint=f"{', '.join(self.classes)} can be loaded, compressed, evaluated and saved "
                "for transformers.",
            )

    def export_program(self, model: nn.Module, phase: Phase) -> Program:
        """Return the module to capture for ``phase``; ``model`` itself stays as it is.

        Raises:
            UnsupportedModelError: If the family has an obstacle to it.
        """
        self.check_exportable()
        assert self.program is not None
        return self.program(model, phase)

    def example_inputs(self, model: nn.Module, phase: Phase) -> tuple[Any, ...]:
        """Return inputs that the program of ``phase`` can be captured with."""
        return self.export_program(model, phase).example_inputs


def _families_with(kind: str) -> str:
    from . import all_families

    having = [f"{f.name} ({', '.join(f.classes)})" for f in all_families() if kind in f.units_of]
    return f"Families with {kind}s: {', '.join(having)}." if having else "No family has them yet."
