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
# (24 texts, logits up to 25):
#   fp32  max 1.4e-3, 99th percentile 1.2e-4, KL 2e-10, top-1 1.000
#   fp16  max 0.56,   99th percentile 9.9e-3, KL 8e-6,  top-1 0.998
#   int8  max 1.33,   99th percentile 1.1e-2, KL 2e-5,  top-1 0.996
#   int4  max 1.25,   99th percentile 1.2e-2, KL 7e-5,  top-1 0.999
# fp32 differs where a key or value lies on the edge between two fp16 numbers. The others differ by
# the rounding of fp16 arithmetic, about 1e-2, and in 3 to 6 steps of 1000 because that rounding
# tips a near tie of the router, which sends a token to another expert. The maximum and the mean are
# of those steps, so their bounds are wide; the ninth decile of KL carries the check: 3e-6 measured,
# 4e-3 where one norm or value projection is scaled by 1.1, 5e-2 where two experts are swapped.
# Storage itself costs (KL and top-1 against eager in fp32): fp32 7e-5, 0.999, which is the cache;
# fp16 8e-5, 0.997; int8 3e-4, 0.985; int4 2.8e-2, 0.856.
_HALF = Tolerance(max_abs=3.0, kl=2e-3, kl_p90=5e-4, top1=0.98)
# fp16 arithmetic, since that is what a phone's accelerators run; it costs less accuracy than
# quantized storage does
SCHEMES = {
    "fp32": Scheme(
        "float32", "float32", Tolerance(max_abs=1e-2, kl=1e-6, kl_p90=1e-6, top1=0.995), 1e-3
    ),
    "fp16": Scheme(
        "float16", "float16", Tolerance(max_abs=3.0, kl=2e-3, kl_p90=1e-4, top1=0.98), 5e-2
    ),
    "int8": Scheme("int8", "float16", _HALF, 5e-2),
    "int4": Scheme("int4", "float16", _HALF, 5e-2),
}
