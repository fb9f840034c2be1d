"""What "fp32", "fp16", "int8" and "int4" mean in Core ML."""

from __future__ import annotations

from dataclasses import dataclass

from mobilekit.schema.manifest import Tolerance

PREFILL_LENGTH = 32  # new tokens a prefill call


@dataclass(frozen=True)
class Scheme:
    """Storage, arithmetic and parity bounds of one precision.

    Attributes:
        stored: Dtype that weights are stored in, as ``WeightRecord`` names it.
        compute: Dtype of the arithmetic ("float32" or "float16", norms' statistics, rotary
            angles and routing excepted).
        tolerance: Bounds of parity with the reference.
        layer_error: Relative error (root mean square) from which on a layer counts as diverged.
    """

    stored: str
    compute: str
    tolerance: Tolerance
    layer_error: float


# Bounds against the reference of the same precision. Measured on the embedded model, 1560 steps
# (24 texts, logits up to 23):
#   fp32  max 1.7e-3, 99th percentile 5.5e-4, KL 4e-10, top-1 1.000
#   int8  max 0.72,   99th percentile 2.6e-2, KL 3e-5,  top-1 0.997
# fp32 differs where a key or value lies on the edge between two fp16 numbers. int8 differs by the
# rounding of fp16 arithmetic, about 1e-2, and in 2 steps of 1000 because that rounding tips a near
# tie of the router, which sends a token to another expert: the maximum is that, so its bound is
# wide, and KL and top-1 carry the check: one value projection scaled by 1.3 moves KL to 2e-2, one
# expert set to zero to 4e-3, one norm scaled by 1.1 to 1e-3.
_HALF = Tolerance(max_abs=2.0, kl=5e-4, top1=0.98)
# fp16 arithmetic, since that is what a phone's accelerators run; it costs less accuracy than
# quantized storage does
SCHEMES = {
    "fp32": Scheme("float32", "float32", Tolerance(max_abs=1e-2, kl=1e-6, top1=0.995), 1e-3),
    "fp16": Scheme("float16", "float16", _HALF, 5e-2),
    "int8": Scheme("int8", "float16", _HALF, 5e-2),
    "int4": Scheme("int4", "float16", _HALF, 5e-2),
}
