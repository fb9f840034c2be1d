"""ExecuTorch: one ``.pte`` with a dynamic length and a resident cache, computed by XNNPACK."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mobilekit.core.optional import require
from mobilekit.models.families import Family, Phase, Program, StateForm
from mobilekit.schema.manifest import ProgramRecord, RuntimeRequirement, Tolerance

from ..base import ExportSpec, Lowered

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.runtime.base import TokenLogits

FILE_NAME = "model.pte"

# Measured over prefill, decode and mixed lengths of the embedded model and of tiny random ones:
# fp32 at most 4e-6, a few ulps of summation order, so 1e-4 leaves room for wider models.
_FP32 = Tolerance(max_abs=1e-4, kl=1e-6, top1=0.99)
# Both sides quantize activations on the fly. Where a value lies on the edge between two of the
# 256 steps, a last-bit difference moves it by a whole step, and such moves may change which
# experts a near-tied router takes; kernels are exact otherwise.
_INT8 = Tolerance(max_abs=1.0, kl=0.02, top1=0.9)


class ExecutorchBackend:
    """The back end behind target "executorch"; see :class:`~..base.Backend`."""

    name = "executorch"
    format: Literal["pte", "onnx", "mlpackage"] = "pte"
    backend = "xnnpack"
    extra = "executorch"
    precisions: tuple[str, ...] = ("fp32", "int8")
    packages: tuple[str, ...] = ("executorch", "torchao", "torch", "transformers")

    def lower(self, model: nn.Module, family: Family, spec: ExportSpec, out: Path) -> Lowered:
        """Write ``model.pte`` into the directory ``out``; ``model`` stays as it is.

        Raises:
            MissingDependencyError: If ExecuTorch or torchao is not installed.
        """
        require("executorch.exir", extra=self.extra)
        from .lowering import lower_program, metadata_methods
        from .weights import count_weights, read_pte

        program = _prepared(model, family, spec)
        methods = metadata_methods(program, spec)
        path = out / FILE_NAME
        constants = lower_program(program, methods, path)
        pte = read_pte(path)
        plan = pte.program.execution_plan[0]
        return Lowered(
            files=(FILE_NAME,),
            programs={
                "forward": ProgramRecord(
                    inputs=program.inputs, outputs=program.outputs, states=program.states
                )
            },
            runtime=RuntimeRequirement(name="executorch", min="1.5"),
            weights=count_weights(pte, spec.precision, not_weights=constants),
            settings={
                "delegates": len(plan.delegates),
                "instructions": sum(len(chain.instructions) for chain in plan.chains),
                "operators": sorted({f"{op.name}.{op.overload}" for op in plan.operators}),
                "metadata": methods,
                "quantizer": _SCHEMES[spec.precision],
            },
        )

    def reference(self, model: nn.Module, family: Family, spec: ExportSpec) -> TokenLogits:
        """Return the eager program, quantized by the same scheme where the artifact is."""
        from mobilekit.runtime.eager import EagerProgram

        program = _program(model, family, spec)
        if spec.precision == "int8":
            require("torchao.quantization", extra=self.extra)
            from .int8 import quantize_int8_

            quantize_int8_(program.module)
        return EagerProgram(
            program.module,
            context_length=spec.context_length,
            vocab_size=program.module.vocab_size,
            name=f"eager-{spec.precision}",
        )

    def tolerance(self, spec: ExportSpec) -> Tolerance:
        """Return what parity with ``reference`` must hold to."""
        return _INT8 if spec.precision == "int8" else _FP32

    def diagnose(
        self, path: Path, model: nn.Module, family: Family, spec: ExportSpec, tokens: list[int]
    ) -> str | None:
        """Return the first layer of the file whose result diverges from ``reference``."""
        from .diagnose import first_diverging_layer

        program = _program(model, family, spec)
        if spec.precision == "int8":
            from .int8 import quantize_int8_

            quantize_int8_(program.module)
        return first_diverging_layer(path, program, tokens, precision=spec.precision)


_SCHEMES = {
    "fp32": None,
    "int8": "torchao: linears int8 per output channel with int8 dynamic activations per token, "
    "embedding int8 per row; routers fp32",
}


def _program(model: nn.Module, family: Family, spec: ExportSpec) -> Program:
    phase = Phase("forward", StateForm.RESIDENT, spec.context_length)
    return family.export_program(model, phase)


def _prepared(model: nn.Module, family: Family, spec: ExportSpec) -> Program:
    """Return the program in the form that lowers best; it computes the same as the plain one."""
    from .attention import use_grouped_attention_

    program = _program(model, family, spec)
    use_grouped_attention_(program.module)
    if spec.precision == "int8":
        require("torchao.quantization", extra="executorch")
        from .int8 import quantize_int8_

        quantize_int8_(program.module)
    return program


EXECUTORCH = ExecutorchBackend()

__all__ = ["EXECUTORCH", "FILE_NAME", "ExecutorchBackend"]
