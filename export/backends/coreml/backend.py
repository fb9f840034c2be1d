"""The Core ML back end, as ``build`` sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mobilekit.models.families import Family
from mobilekit.models.families.base import Phase, Program, StateForm
from mobilekit.schema.manifest import (
    ProgramRecord,
    RuntimeRequirement,
    TensorSpec,
    Tolerance,
)

from ...precision import Precision
from ..base import ExportSpec, Lowered
from .scheme import PREFILL_LENGTH, SCHEMES

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.runtime.base import TokenLogits

_QUANTIZER = "int8: coremltools linear_symmetric a row; int4: groups of 32, scales searched"


@dataclass(frozen=True)
class CoreMLBackend:
    """Stateful iOS 18 ML program; prefill and decode are two functions over the same weights."""

    name: str = "coreml"
    format: Literal["pte", "onnx", "mlpackage"] = "mlpackage"
    backend: str = "mlprogram"
    extra: str = "coreml"
    precisions: tuple[str, ...] = tuple(SCHEMES)
    tokenizer_beside: bool = False
    packages: tuple[str, ...] = ("coremltools", "torch", "transformers")

    def lower(self, model: nn.Module, family: Family, spec: ExportSpec, out: Path) -> Lowered:
        """Write ``out/model.mlpackage``; ``model`` stays as it is."""
        from .convert import convert
        from .package import package_files, write_package
        from .quantize import Quantizer
        from .storage import stored_layers
        from .weights import weight_record

        scheme = SCHEMES[spec.precision.name]
        out.mkdir(parents=True, exist_ok=True)
        programs = export_programs(model, family, spec)
        decode = programs["decode"]
        layers = stored_layers(decode, spec.precision) if spec.precision.is_quantized else {}
        quantizer = Quantizer(layers)
        converted = {
            name: convert(program, scheme, quantizer) for name, program in programs.items()
        }
        package = write_package(converted, decode.layers, out)
        return Lowered(
            files=package_files(package),
            programs={name: _record(program) for name, program in programs.items()},
            runtime=RuntimeRequirement(name="coreml", min="iOS18"),
            weights=weight_record(package, stored=scheme.stored),
            settings=_settings(spec.precision, programs),
        )

    def reference(self, model: nn.Module, family: Family, spec: ExportSpec) -> TokenLogits:
        """Return the program run eagerly: weights as stored, cache rounded to fp16."""
        from .reference import eager_reference

        return eager_reference(model, family, spec)

    def tolerance(self, spec: ExportSpec) -> Tolerance:
        """Return what parity with ``reference`` must hold to; see ``scheme`` for the reasons."""
        return SCHEMES[spec.precision.name].tolerances[spec.routing]

    def diagnose(
        self, path: Path, model: nn.Module, family: Family, spec: ExportSpec, tokens: list[int]
    ) -> str | None:
        """Return the first layer of the package whose output differs from the reference's."""
        from .diagnose import first_diverging_layer

        return first_diverging_layer(path, model, family, spec, tokens)


def export_programs(model: nn.Module, family: Family, spec: ExportSpec) -> dict[str, Program]:
    """Return the programs of a package, by function name; static lengths, as Core ML likes.

    A recurrent family has the decode program only, since its programs take one token a call.
    """
    lengths = {"decode": 1}
    if not family.is_recurrent:
        lengths["prefill"] = min(PREFILL_LENGTH, spec.context_length)
    return {
        name: family.export_program(
            model, Phase(name, StateForm.ARITHMETIC, spec.context_length, length)
        )
        for name, length in lengths.items()
    }


def _record(program: Program) -> ProgramRecord:
    states = tuple(s.model_copy(update={"dtype": "float16"}) for s in program.states)
    outputs: tuple[TensorSpec, ...] = program.outputs
    return ProgramRecord(inputs=program.inputs, outputs=outputs, states=states)


def _settings(precision: Precision, programs: dict[str, Program]) -> dict[str, object]:
    from .storage import undivided

    compute = SCHEMES[precision.name].compute
    settings: dict[str, object] = {
        "compute_precision": compute,
        "state_dtype": "float16",  # the only one that Core ML has, whatever it computes in
        "prefill_length": max(int(p.inputs[0].shape[1]) for p in programs.values()),
        "specification_version": 9,  # iOS 18
    }
    if compute == "float16":
        settings["kept_float32"] = (
            "router, rotary angles, norms, residual stream, soft caps, decays"
        )
    if precision.is_quantized:
        settings["quantizer"] = _QUANTIZER
        settings["int8_for_int4"] = undivided(programs["decode"], precision)
    return settings


COREML = CoreMLBackend()
