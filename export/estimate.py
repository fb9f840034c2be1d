"""Estimate what an export needs, before it starts: pure functions of a checkpoint's facts.

Every figure from here is an estimate, and is called so wherever it is shown. A worker's peak is the
interpreter with torch and the converter, plus so many float32 copies of the weights and of the
key-value cache as the converter holds at once. Calibrated on Qwen3 checkpoints with a tied head,
one thread on x86-64, context 512; estimated / measured peak RSS of a worker in MB, at fp32, int8:

    parameters    onnx                      coreml                    executorch
    2.8 M (MoE)   736 / 674, 736 / 616      761 / 674, 761 / 690      758 / 680, 736 / 684
    15.7 M        988 / 840, 988 / 828      1127 / 982, 1127 / 1003   1151 / 989, 1032 / 1005
    19.6 M (MoE)  1062 / 968, –             1234 / 1117, –            1266 / 1149, –
    94.4 M        2518 / 2103, 2518 / 2071  3348 / 2697, 3348 / 2771  3540 / 2801, 2822 / 1895

At int4: 2.8 M executorch 736 / 671; 15.7 M onnx 988 / 775, coreml 1127 / 974, executorch
1032 / 879; 94.4 M onnx 2518 / 1661. At fp16: 15.7 M onnx 988 / 897. Not measured: coreml at fp16,
the others at 94.4 M.

The starting process: 475 / 467 at 2.8 M, 588 / 573 at 15.7 M, 1281 / 980 at 94.4 M. A second thread
added 47 MB to a worker.
``benchmarks/export_memory.py`` measures anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

MB = 1_000_000
PARENT_BASE = 450 * MB  # interpreter, torch, transformers, tokenizer; shared pages counted
_PARENT_COPIES = 2.2  # float32 copies of the weights while eager is loaded, checked and run


@dataclass(frozen=True)
class Footprint:
    """How a back end's worker uses memory, and its file disk.

    Attributes:
        base: Bytes before any weight: interpreter, torch, converter, runtime.
        copies: Float32 copies of all weights at the peak of a float artifact.
        quantized_copies: The same of a quantized one, which begins in float32 too, and whose
            reference computes in it.
        caches: Float32 copies of the key-value cache at full length.
    """

    base: int
    copies: float
    quantized_copies: float
    caches: float


FOOTPRINTS = {
    "executorch": Footprint(670 * MB, 7.5, 5.6, 3.0),
    "onnx": Footprint(680 * MB, 4.8, 4.8, 2.0),
    "coreml": Footprint(680 * MB, 7.0, 7.0, 2.0),
}
# bytes a weight in the file, tied ones once; scales and zero points of the quantized ones included
_FILE_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.1, "int4": 0.6}
_GRAPH = 0.15 * MB  # of the whole, and again for every layer that is unrolled in it
_VECTORS = 2.5 * MB  # logits kept for a reference: a fixed budget


@dataclass(frozen=True)
class ModelFacts:
    """What the estimates depend on.

    Attributes:
        parameters: Count, tied ones once.
        weight_bytes: Bytes of the stored weights.
        num_layers: Decoder layers.
        vocab_size: V.
        hidden_size: D.
        kv_width: Width of one layer's keys (or values) of one token; 0 without a cache.
    """

    parameters: int
    weight_bytes: int
    num_layers: int
    vocab_size: int
    hidden_size: int
    kv_width: int

    @property
    def float32_bytes(self) -> int:
        """All weights in float32, as every export begins with."""
        return 4 * self.parameters

    def cache_bytes(self, context_length: int) -> int:
        """Return the float32 bytes of the key-value cache at full length."""
        return prod((2, self.num_layers, self.kv_width, context_length, 4))


def model_facts(config: dict[str, Any], parameters: int, weight_bytes: int) -> ModelFacts:
    """Return the facts of a checkpoint, out of its config and its counted weights."""
    hidden = int(config.get("hidden_size") or 0)
    heads = int(config.get("num_attention_heads") or 0)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or (hidden // heads if heads else 0))
    return ModelFacts(
        parameters=parameters,
        weight_bytes=weight_bytes,
        num_layers=int(config.get("num_hidden_layers") or 0),
        vocab_size=int(config.get("vocab_size") or 0),
        hidden_size=hidden,
        kv_width=kv_heads * head_dim,
    )


def worker_peak_bytes(facts: ModelFacts, target: str, precision: str, context_length: int) -> int:
    """Return the estimated peak of the process that makes and checks one artifact."""
    shape = FOOTPRINTS[target]
    is_quantized = precision in ("int8", "int4")
    weights = (shape.quantized_copies if is_quantized else shape.copies) * facts.float32_bytes
    return round(shape.base + weights + shape.caches * facts.cache_bytes(context_length))


def parent_peak_bytes(facts: ModelFacts) -> int:
    """Return the estimated peak of the process that starts the workers: it runs eager first."""
    return round(PARENT_BASE + _PARENT_COPIES * facts.float32_bytes)


def artifact_bytes(facts: ModelFacts, precision: str) -> int:
    """Return the estimated size of one artifact, whichever its format."""
    graph = _GRAPH * (1 + facts.num_layers)
    return round(_FILE_BYTES[precision] * facts.parameters + graph)


def vectors_bytes(num_artifacts: int) -> int:
    """Return the estimated size of the parity vectors, written anew while workers read them."""
    return round(_VECTORS * 2 * (1 + num_artifacts))


def most_workers(peaks: Sequence[int], available_bytes: int | None, most: int) -> int:
    """Return how many workers fit beside one another, whichever meet; at least 1.

    Args:
        peaks: Estimated peak of each job's worker.
        available_bytes: Memory for all of them together; no bound where ``None``.
        most: Upper bound, by cores.
    """
    largest = sorted(peaks, reverse=True)
    fitting = [
        count
        for count in range(1, min(most, len(peaks)) + 1)
        if available_bytes is None or sum(largest[:count]) <= available_bytes
    ]
    return max(fitting, default=1)
