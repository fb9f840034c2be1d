"""ExecuTorch: one ``.pte`` with a dynamic length and a resident cache, computed by XNNPACK."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobilekit.core.optional import require
from mobilekit.models.families import Family, Phase, Program, StateForm
from mobilekit.schema.manifest import ProgramRecord, RuntimeRequirement, TensorSpec, Tolerance

from ..base import ExportSpec, Lowered

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.runtime.base import TokenLogits

FILE_NAME = "model.pte"

# Measured on the embedded model over 276 positions, prefill and decode: max abs 1.6e-5 of logits
# up to 9, mean KL 9e-13, top-1 1.0; on tiny random models 1e-6. Only the order of sums differs.
_FP32 = Tolerance(max_abs=2e-4, kl=1e-6, kl_p90=1e-6, top1=0.99)
# Both sides quantize activations on the fly. Where a value lies on the edge between two of the
# 255 steps, a last-bit difference moves it by a whole step, and that may let a near-tied router
# take another expert, for one token. Measured on the same positions: max abs 0.19 to 0.67, mean
# KL 2e-5 to 4e-4, top-1 0.996; quantization itself costs a mean KL of 2.6e-4 and 0.58 at most.
_INT8 = Tolerance(max_abs=2.0, kl=5e-3, kl_p90=2e-3, top1=0.95)
# The same in 4 bits: max abs 0.06 to 1.5, mean KL 3e-6 to 9e-4, top-1 0.988 to 1.0 over 171 steps;
# quantization itself costs a mean KL of 1.4e-2.
_INT4 = Tolerance(max_abs=4.0, kl=5e-3, kl_p90=2e-3, top1=0.95)
# In half precision both sides round, each sum in its own order: max abs 0.016 of logits up to 20,
# mean KL 1.7e-6, top-1 1.0 over 171 steps. A true overflow shows as logits that are not finite.
_FP16 = Tolerance(max_abs=0.2, kl=1e-4, kl_p90=1e-4, top1=0.98)
# The rounding tips near ties of a router, the more the more layers and experts there are. Ninth
# decile, where all is well: embedded model 3.4e-6 (max abs 0.20, mean KL 4.9e-6, top-1 0.996),
# ten random layers of 32 experts 1.6e-4 (0.29, 7.6e-5, 0.974). An expert set to zero makes as much
# on the embedded model, so no bound of it tells the two apart. As for Core ML, whose
# scheme.py tells how far a single tie may go.
_FP16_ROUTED = Tolerance(max_abs=3.0, kl=1e-3, kl_p90=5e-4, top1=0.98)
_FP16_GROUPED = Tolerance(max_abs=5.0, kl=4e-3, kl_p90=5e-4, top1=0.98)
_FP16_BY_ROUTING = {"dense": _FP16, "experts": _FP16_ROUTED, "groups": _FP16_GROUPED}
_TOLERANCES = {"fp32": _FP32, "int8": _INT8, "int4": _INT4}


class ExecutorchBackend:
    """The back end behind target "executorch"; see :class:`~..base.Backend`."""

    name = "executorch"
    format: Literal["pte", "onnx", "mlpackage"] = "pte"
    backend = "xnnpack"
    extra = "executorch"
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8", "int4")
    tokenizer_beside: bool = False
    packages: tuple[str, ...] = ("executorch", "torchao", "torch", "transformers")

    def lower(self, model: nn.Module, family: Family, spec: ExportSpec, out: Path) -> Lowered:
        """Write ``model.pte`` into the directory ``out``; ``model`` stays as it is.

        Raises:
            MissingDependencyError: If ExecuTorch or torchao is not installed.
        """
        require("executorch.exir", extra=self.extra)
        from .lowering import lower_program, metadata_methods
        from .weights import count_weights, read_pte

        program, ungrouped = _prepared(model, family, spec)
        methods = metadata_methods(program, spec)
        path = out / FILE_NAME
        constants = lower_program(program, methods, path)
        pte = read_pte(path)
        plan = pte.program.execution_plan[0]
        return Lowered(
            files=(FILE_NAME,),
            programs={
                "forward": ProgramRecord(
                    inputs=program.inputs, outputs=program.outputs, states=_states(program)
                )
            },
            runtime=RuntimeRequirement(name="executorch", min="1.5"),
            weights=count_weights(pte, spec.precision.name, not_weights=constants),
            settings={
                "delegates": len(plan.delegates),
                "instructions": sum(len(chain.instructions) for chain in plan.chains),
                "operators": sorted({f"{op.name}.{op.overload}" for op in plan.operators}),
                "metadata": methods,
                "quantizer": _SCHEMES[spec.precision.name],
                "int8_for_want_of_groups": ungrouped,
            },
        )

    def reference(self, model: nn.Module, family: Family, spec: ExportSpec) -> TokenLogits:
        """Return the eager program, quantized by the same scheme where the artifact is."""
        from mobilekit.runtime.eager import EagerProgram

        module: Any = self._reference_program(model, family, spec).module
        return EagerProgram(
            module,
            context_length=spec.context_length,
            vocab_size=module.vocab_size,
            name=f"eager-{spec.precision.name}",
        )

    def tolerance(self, spec: ExportSpec) -> Tolerance:
        """Return what parity with ``reference`` must hold to."""
        if spec.precision.name == "fp16":
            return _FP16_BY_ROUTING[spec.routing]
        return _TOLERANCES[spec.precision.name]

    def diagnose(
        self, path: Path, model: nn.Module, family: Family, spec: ExportSpec, tokens: list[int]
    ) -> str | None:
        """Return the first layer of the file whose result diverges from ``reference``."""
        from .diagnose import first_diverging_layer

        program = self._reference_program(model, family, spec)
        return first_diverging_layer(path, program, tokens, precision=spec.precision.name)

    def _reference_program(self, model: nn.Module, family: Family, spec: ExportSpec) -> Program:
        return _quantized(_program(model, family, spec), spec)[0]


_DYNAMIC = "torchao: linears {} with int8 dynamic activations per token, embedding {}; routers fp32"
_SCHEMES = {
    "fp32": None,
    "fp16": "weights and activations float16; norms, attention, recurrences and routers float32",
    "int8": _DYNAMIC.format("int8 per output channel", "int8 per row"),
    "int4": _DYNAMIC.format("int4 in groups of 32 inputs, scales searched", "the same"),
}


def _program(model: nn.Module, family: Family, spec: ExportSpec) -> Program:
    phase = Phase("forward", StateForm.RESIDENT, spec.context_length)
    program = family.export_program(model, phase)
    if spec.precision.name == "fp16":
        from .half import halve_

        halve_(program)
    return program


def _prepared(model: nn.Module, family: Family, spec: ExportSpec) -> tuple[Program, list[str]]:
    """Return the program as it is lowered, which computes the same, and what is int8 by need."""
    from .attention import InPlaceDecoder

    program = _program(model, family, spec)
    if not program.is_recurrent:
        decoder: Any = program.module
        program = replace(program, module=InPlaceDecoder(decoder))
    return _quantized(program, spec)


def _states(program: Program) -> tuple[TensorSpec, ...]:
    """Return the specs of the states as they are in the file."""
    buffers = dict(program.module.named_buffers(recurse=False))
    return tuple(
        TensorSpec(
            name=state.name,
            dtype=str(buffers[state.name].dtype).removeprefix("torch."),
            shape=tuple(buffers[state.name].shape),
        )
        for state in program.states
    )


def _quantized(program: Program, spec: ExportSpec) -> tuple[Program, list[str]]:
    """Return the program at its precision, experts apart, and the layers that are int8 by need."""
    from .experts import split_experts_

    if not spec.precision.is_quantized:
        return split_experts_(program)[0], []
    require("torchao.quantization", extra="executorch")
    from .quantize import quantize_

    return quantize_(program, spec.precision)


EXECUTORCH = ExecutorchBackend()

__all__ = ["EXECUTORCH", "FILE_NAME", "ExecutorchBackend"]
