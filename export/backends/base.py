"""What a back end must be able to do; ``build`` knows no more than this."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mobilekit.models.families import Family
from mobilekit.schema.manifest import (
    ProgramRecord,
    RuntimeRequirement,
    Tolerance,
    WeightRecord,
)

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.runtime.base import TokenLogits

    from ..precision import Precision


# Rounding tips near ties of a router that chooses "experts", and one of a router that chooses
# "groups" of them first changes all experts of a token.
Routing = Literal["dense", "experts", "groups"]


@dataclass(frozen=True)
class ExportSpec:
    """What is asked of a back end, beside the model.

    Attributes:
        precision: What each layer is stored at.
        context_length: Positions that the cache holds.
        bos_token_id: Begin-of-text id or ``None``.
        eos_token_ids: Ids that end a text.
        pad_token_id: Padding id or ``None``.
        routing: How tokens come to the weights that they are multiplied by; see :data:`Routing`.
    """

    precision: Precision
    context_length: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    routing: Routing = "dense"


@dataclass(frozen=True)
class Lowered:
    """What a back end wrote.

    Attributes:
        files: Paths relative to the output directory; the first is the one a runtime opens (for
            an ``.mlpackage``, its manifest).
        programs: Entry points.
        runtime: Which runtime opens it, from which version on.
        weights: Storage of the weights, counted from the written file.
        settings: Whatever else a reader may want to know (delegates, opset, quantizer, …).
    """

    files: tuple[str, ...]
    programs: dict[str, ProgramRecord]
    runtime: RuntimeRequirement
    weights: WeightRecord
    settings: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """One ecosystem: lower a model to it, and say what to compare the result with.

    Attributes:
        name: Target name ("executorch").
        format: File format ("pte").
        backend: What computes inside the runtime ("xnnpack", "cpu", "mlprogram").
        extra: Extra of MobileKit that brings the packages.
        precisions: Precisions it offers.
        packages: Distributions whose versions decide what the file looks like (cache key).
        tokenizer_beside: Whether the ecosystem's stock tools look for the tokenizer in the
            artifact's own folder.
    """

    name: str
    format: Literal["pte", "onnx", "mlpackage"]
    backend: str
    extra: str
    precisions: tuple[str, ...]
    packages: tuple[str, ...]
    tokenizer_beside: bool

    def lower(self, model: nn.Module, family: Family, spec: ExportSpec, out: Path) -> Lowered:
        """Write the artifact of ``model`` (eager, fp32, on the CPU) into the directory ``out``."""

    def reference(self, model: nn.Module, family: Family, spec: ExportSpec) -> TokenLogits:
        """Return an eager runtime that computes at the artifact's own precision and scheme."""

    def tolerance(self, spec: ExportSpec) -> Tolerance:
        """Return what parity with ``reference`` must hold to."""

    def diagnose(
        self, path: Path, model: nn.Module, family: Family, spec: ExportSpec, tokens: list[int]
    ) -> str | None:
        """Return the first layer of the file at ``path`` that diverges from ``reference``.

        Runs the shipped file itself on ``tokens`` with taps on its layers; ``None`` where no
        layer diverges (the fault is then after the last one).
        """
