"""How the weights of a written package are stored, counted from its program and weight file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilekit.runtime.mil import load_spec
from mobilekit.schema.manifest import WeightRecord

_SCALES = ("scale", "offset")


def weight_record(package: Path, *, stored: str) -> WeightRecord:
    """Count every float or compressed constant once, however many functions share it.

    Args:
        package: The ``.mlpackage``.
        stored: Dtype that the artifact's precision promises ("float32", "int8").
    """
    spec = load_spec(package)
    sizes: dict[tuple[str, Any], int] = {}
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for kind, key, size in _constants(block.operations):
                sizes[kind, key] = size
    totals: Counter[str] = Counter()
    for (kind, _), size in sizes.items():
        totals[kind] += size
    elements = sum(size for kind, size in totals.items() if kind != "scales")
    share = totals[stored] / elements if elements else 0.0
    return WeightRecord(bytes_by_dtype=dict(sorted(totals.items())), share_at_precision=share)


def _constants(operations: Any) -> Iterator[tuple[str, Any, int]]:
    """Yield (dtype or "scales", identity, bytes) of each constant tensor of a block."""
    scales = set()
    for op in operations:
        if op.type.startswith("constexpr_"):
            for name, argument in op.inputs.items():
                for binding in argument.arguments:
                    if binding.WhichOneof("binding") == "name":
                        scales.update([binding.name] if name in _SCALES else [])
                    elif (sized := _sized(binding.value)) is not None:
                        kind = "scales" if name in _SCALES else sized[0]
                        yield kind, sized[1], sized[2]
    for op in operations:
        if op.type == "const" and (sized := _sized(op.attributes["val"])) is not None:
            kind = "scales" if op.outputs[0].name in scales else sized[0]
            yield kind, sized[1], sized[2]


def _sized(value: Any) -> tuple[str, Any, int] | None:
    """Return (dtype, identity, bytes) of a constant in the weight file.

    Constants that are written into the program itself have under ten elements: no weights.
    """
    from coremltools.proto import MIL_pb2

    if value.WhichOneof("value") != "blobFileValue":
        return None
    widths = {
        MIL_pb2.FLOAT16: ("float16", 2.0),
        MIL_pb2.FLOAT32: ("float32", 4.0),
        MIL_pb2.INT8: ("int8", 1.0),
        MIL_pb2.UINT8: ("uint8", 1.0),
        MIL_pb2.INT4: ("int4", 0.5),
        MIL_pb2.UINT4: ("uint4", 0.5),
    }
    tensor = value.type.tensorType
    if tensor.dataType not in widths:
        return None
    name, width = widths[tensor.dataType]
    count = math.prod(d.constant.size for d in tensor.dimensions)
    return name, value.blobFileValue.offset, math.ceil(count * width)
