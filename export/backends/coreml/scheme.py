"""What "fp32", "fp16", "int8" and "int4" mean in Core ML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from mobilekit.schema.manifest import Tolerance

from ..base import Routing

PREFILL_LENGTH = 32  # new tokens a prefill call


@dataclass(frozen=True)
class Scheme:
    """Storage, arithmetic and parity bounds of one precision.

    Attributes:
        stored: Dtype that weights are stored in, as ``WeightRecord`` names it.
        compute: Dtype of the arithmetic ("float32" or "float16", norms' statistics, rotary
            angles and routing excepted).
        tolerances: Bounds of parity with the reference, by how tokens are routed.
        layer_error: Relative error (root mean square) from which on a layer counts as diverged.
    """

    stored: str
    compute: str
    tolerances: Mapping[Routing, Tolerance]
    layer_error: float


# Bounds against the reference of the same precision, measured with the numpy evaluator.
#
# The embedded model, 24 texts, 1560 steps, logits up to 25:
#   fp32  max 1.4e-3, KL 2e-10, top-1 1.000
#   fp16  max 0.56,   KL 8e-6,  top-1 0.998; ninth decile of KL 2.5e-6 (8 texts, 512 steps)
#   int8  max 1.33,   KL 2e-5,  top-1 0.996
#   int4  max 1.25,   KL 7e-5,  top-1 0.999
# Tiny models of 13 classes, random weights, 8 texts, 256 steps each, the worst of each precision:
#   fp16  max 1.2e-2, KL 1.5e-6, ninth decile 3.0e-6, top-1 0.992
#   int8  max 2.2e-2, KL 1.9e-6, ninth decile 3.5e-6, top-1 0.988
#   int4  max 1.6e-2, KL 1.8e-6, ninth decile 4.0e-6, top-1 0.984
# so what differs is fp16 arithmetic, whatever the storage, and the three have the same bounds.
# Depth adds little: fp16 of 4, 16 and 28 layers of random Qwen3, ninth decile 2.9, 3.9 and 4.1e-6.
#
# fp32 differs where a key or value lies on the edge between two fp16 numbers. Best tokens that
# differ are near ties, four of 256 at most.
#
# In fp16 arithmetic, rounding besides tips near ties of a router, which sends a token to another
# expert. Packages of a tiny OLMoE at a context of 48, 1 of 604 routings in each: in fp16, the last
# expert that was chosen and the first that was not were 5.5e-4 apart (median 0.29), that step's KL
# is 2.6e-2 and the mean of all 192 steps 1.4e-4, where the other 191 have 5e-7; in int8, 5e-5
# apart, KL 1.9e-2, mean 1.1e-4, and the 12 steps behind it have 2e-4, by their cache. The embedded
# model in fp16: 5 of 3032 routings, none more than 7e-4 apart, KL up to 1.5e-3. Eager tiny OLMoE
# and Qwen3-MoE against themselves with every linear rounded to fp16, 76 sets of 8 texts, 192 steps
# each: max up to 1.1, KL up to 3.6e-4, ninth decile above 1e-4 once, 2.3e-4. So models with experts
# have bounds of their own, at 2 to 3 times these figures; without, KL and its ninth decile are
# bound at 24 times what was measured or more. Where a router chooses groups first (GLM-4-MoE), a
# tie of groups changes every expert of a token: of tiny models of seven classes, 60 sets of 8
# texts, 256 steps each, it alone had a max of 2.2 and KL of 1.7e-3, and its ninth decile was
# 8.4e-5 at most. So max and KL have twice that there, and the ninth decile stays where it is.
#
# Faults, and the ninth decile that they cause (norms and value projections scaled by 1.1):
#   without experts, tiny Llama and Mamba 2 in fp16 and int4: 2.4e-3 or more, KL 1.7e-3 or more
#   tiny OLMoE in fp16 and int4: scaled 9.5e-4 or more, an expert swapped or set to zero 4e-2
#   embedded model in fp16, int8, int4: a later norm or a value projection 4e-3 or more, two experts
#   swapped 2e-3 or more. The first norm (3.1e-4 in fp16) and an expert set to zero (1.3e-4 in fp16
#   and int8, 2.8e-4 in int4) are too near to what a near tie may do: they are not caught.
#
# Storage itself costs (KL and top-1 of the embedded model against eager in fp32): fp32 7e-5, 0.999,
# which is the cache; fp16 8e-5, 0.997; int8 3e-4, 0.985; int4 1.3e-2, 0.906 (8 texts, 512 steps).
_FULL = Tolerance(max_abs=1e-2, kl=1e-6, kl_p90=1e-6, top1=0.995)
_HALF = Tolerance(max_abs=1.0, kl=5e-5, kl_p90=1e-4, top1=0.98)
_HALF_ROUTED = Tolerance(max_abs=3.0, kl=1e-3, kl_p90=5e-4, top1=0.98)
_HALF_GROUPED = Tolerance(max_abs=5.0, kl=4e-3, kl_p90=5e-4, top1=0.98)
_FULL_BY_ROUTING: dict[Routing, Tolerance] = dict.fromkeys(get_args(Routing), _FULL)
_HALF_BY_ROUTING: dict[Routing, Tolerance] = {
    "dense": _HALF,
    "experts": _HALF_ROUTED,
    "groups": _HALF_GROUPED,
}
# fp16 arithmetic, since that is what a phone's accelerators run; it costs less accuracy than
# quantized storage does
SCHEMES = {
    "fp32": Scheme("float32", "float32", _FULL_BY_ROUTING, 1e-3),
    "fp16": Scheme("float16", "float16", _HALF_BY_ROUTING, 5e-2),
    "int8": Scheme("int8", "float16", _HALF_BY_ROUTING, 5e-2),
    "int4": Scheme("int4", "float16", _HALF_BY_ROUTING, 5e-2),
}
