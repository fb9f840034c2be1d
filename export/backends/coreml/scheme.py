"""What "fp32" and "int8" mean in Core ML."""

from __future__ import annotations

from dataclasses import dataclass

from mobilekit.schema.manifest import Tolerance

WEIGHT_THRESHOLD = 512  # elements; coremltools' own 2048 would leave small layers in float
PREFILL_LENGTH = 32  # new tokens a prefill call


@dataclass(frozen=True)
class Scheme:
    """Storage, arithmetic and parity bounds of one precision.

    Attributes:
        quantized: Whether linears and embeddings are stored as int8.
        compute: Dtype of the arithmetic ("float32" or "float16", norms' statistics, rotary
            angles and routing excepted).
        tolerance: Bounds of parity with the reference.
        layer_error: Relative error (root mean square) from which on a layer counts as diverged.
    """

    quantized: bool
    compute: str
    tolerance: Tolerance
    layer_error: float


SCHEMES = {
    "fp32": Scheme(
        quantized=False,
        compute="float32",
        tolerance=Tolerance(max_abs=5e-3, kl=1e-6, top1=0.99),
        layer_error=1e-3,
    ),
    "int8": Scheme(
        quantized=True,
        compute="float16",
        tolerance=Tolerance(max_abs=0.25, kl=1e-3, top1=0.97),
        layer_error=5e-2,
    ),
}
