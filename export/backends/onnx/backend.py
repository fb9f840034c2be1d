"""The ONNX back end: what ``build`` and ``verify`` ask of an ecosystem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobilekit.core.files import atomic_write_json
from mobilekit.core.optional import require
from mobilekit.schema.manifest import ProgramRecord, RuntimeRequirement, Tolerance

from ..base import ExportSpec, Lowered

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.models.families import Family
    from mobilekit.runtime.base import TokenLogits


class OnnxBackend:
    """Lowers to one ``.onnx`` beside a ``genai_config.json``; implements ``Backend``.

    "fp16" stores weights in half precision and computes in float32, as ONNX Runtime's CPU kernels
    do anyway: of the operators used, ``MatMul``, ``Mul`` and ``Sigmoid`` have none in half
    precision. Weights are widened once, when the file is opened, so it runs as fast as fp32.
    """

    name = "onnx"
    format: Literal["onnx"] = "onnx"
    backend = "cpu"
    extra = "onnx"
    precisions = ("fp32", "fp16", "int8", "int4")
    tokenizer_beside = True  # onnxruntime-genai reads it there
    packages = ("onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch", "transformers")

    def lower(self, model: nn.Module, family: Family, spec: ExportSpec, out: Path) -> Lowered:
        """Write the artifact of ``model`` into the directory ``out``; the model stays as it is."""
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, extra=self.extra)
        from . import write
        from .capture import OPSET, capture
        from .fuse import fuse
        from .genai import CONFIG_FILE, genai_config, obstacle
        from .halve import halve

        captured = capture(model, family, spec)
        settings: dict[str, Any] = {"opset": OPSET, "fused": fuse(captured.model)}
        if captured.quantized:
            settings["quantizer"] = captured.quantized
        if spec.precision.name == "fp16":
            halve(captured.model)
            settings["computes_in"] = "float32"
        files: tuple[str, ...] = tuple(write.save(write.finish(captured), out))
        program = captured.program
        if (reason := obstacle(program)) is None:
            files = (*files, CONFIG_FILE)
            atomic_write_json(out / CONFIG_FILE, genai_config(model.config, spec, program))
        else:
            settings["not_for_onnxruntime_genai"] = reason
        path = out / files[0]
        settings["operators"] = write.operator_counts(path)
        return Lowered(
            files=files,
            programs={"forward": ProgramRecord(inputs=program.inputs, outputs=program.outputs)},
            runtime=RuntimeRequirement(name="onnxruntime", min=write.minimum_runtime(path)),
            weights=write.weight_record(path, spec.precision.name),
            settings=settings,
        )

    def reference(self, model: nn.Module, family: Family, spec: ExportSpec) -> TokenLogits:
        """Return the eager program of the same precision and scheme."""
        from mobilekit.runtime.eager import EagerProgram

        from .reference import reference_program

        program = reference_program(model, family, spec)
        return EagerProgram(
            program.module,  # type: ignore[arg-type]
            context_length=spec.context_length,
            vocab_size=model.config.vocab_size,  # type: ignore[union-attr,arg-type]
            name=f"eager-{spec.precision.name}",
        )

    def tolerance(self, spec: ExportSpec) -> Tolerance:
        """Return what parity with :meth:`reference` must hold to."""
        return TOLERANCES[spec.precision.name]

    def diagnose(
        self, path: Path, model: nn.Module, family: Family, spec: ExportSpec, tokens: list[int]
    ) -> str | None:
        """Return the first layer of the file at ``path`` that diverges from the reference."""
        from .diagnose import first_divergence, reference_states, tapped_states
        from .reference import reference_program

        expected = reference_states(reference_program(model, family, spec), tokens)
        found = tapped_states(path, tokens)
        return first_divergence(found, expected, limit=LAYER_LIMITS[spec.precision.name])


# Measured on the embedded model, 768 positions of 8 texts, logits up to 23. fp32 and fp16: 1.7e-5.
# The few-bit files equal their references to 1e-5 until an activation falls between two levels
# within rounding error; the levels after it differ from there on, and at a near-tie of the router
# another expert runs. So the largest difference says little, and KL is the sharp check: that of
# wrong weights was 0.5.
#         largest  99 of 100 below  mean KL  top-1
#   int8   2.9      0.16             4.5e-4   0.992
#   int4   1.4      0.27             3.0e-4   0.990
TOLERANCES = {
    "fp32": Tolerance(max_abs=1e-3, kl=1e-5, kl_p90=1e-5, top1=0.99),
    "fp16": Tolerance(max_abs=1e-3, kl=1e-5, kl_p90=1e-5, top1=0.99),
    "int8": Tolerance(max_abs=8.0, kl=5e-3, kl_p90=2e-3, top1=0.95),
    "int4": Tolerance(max_abs=8.0, kl=5e-3, kl_p90=2e-3, top1=0.95),
}
# relative Frobenius error of a layer's output; measured 4e-7, at most 5e-3, at most 1.7e-2
LAYER_LIMITS = {"fp32": 1e-4, "fp16": 1e-4, "int8": 2e-2, "int4": 5e-2}
ONNX = OnnxBackend()
