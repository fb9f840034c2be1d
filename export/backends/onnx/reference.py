"""The eager program that computes what the artifact should: its precision, its scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilekit.models.families import Phase, Program, StateForm

from .halve import round_to_half
from .quantize import quantize_program

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.models.families import Family

    from ..base import ExportSpec


def reference_program(model: nn.Module, family: Family, spec: ExportSpec) -> Program:
    """Return the resident-cache program of the spec's precision; ``model`` stays as it is."""
    phase = Phase("forward", StateForm.RESIDENT, spec.context_length)
    program = family.export_program(model, phase)
    if spec.precision.is_quantized:
        quantize_program(program, spec.precision)
    elif spec.precision.name == "fp16":
        round_to_half(program)
    return program
