"""Write the graph to disk, and count what the written file holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from mobilekit.core.errors import InvalidInputError
from mobilekit.schema.manifest import WeightRecord

if TYPE_CHECKING:
    from .capture import Captured

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
TAPS_KEY = "mobilekit.taps"
_INLINE_LIMIT = 1_900_000_000  # bytes; a protobuf message ends at 2 GiB
_EXTERNAL_THRESHOLD = 1024  # bytes; smaller tensors stay in the graph file
_CODES_AND_SCALES = {  # inputs of codes, of scales, attribute of the bits
    "MatMulNBits": ((1, 2, "bits"),),
    "GatherBlockQuantized": ((0, 2, "bits"),),
    "QMoE": ((2, 3, "expert_weight_bits"), (5, 6, "expert_weight_bits")),
}
_STORED = {"fp32": "float32", "fp16": "float16", "int8": "uint8", "int4": "uint4"}
_NEWER = {"local_window_size", "softcap"}
_SCALES, _TABLE = "scales", "rotary table"


def finish(captured: Captured) -> onnx.ModelProto:
    """Return the graph as it ships: own outputs only, no traces of the exporting machine.

    The names of the values that the layers put out are kept in the file's metadata, so that a
    later diagnosis can tap the shipped file itself.
    """
    model = captured.model
    taps = set(captured.taps.values())
    for index in reversed(range(len(model.graph.outputs))):
        if model.graph.outputs[index].name in taps:
            del model.graph.outputs[index]
    for spec, value in zip(
        (*captured.program.inputs, *captured.program.outputs),
        (*model.graph.inputs, *model.graph.outputs),
        strict=True,
    ):
        value.shape = ir.Shape(spec.shape)
    passes.ClearMetadataAndDocStringPass()(model)  # the exporter records source paths there
    model.metadata_props.clear()
    model.metadata_props[TAPS_KEY] = json.dumps(captured.taps)
    model.producer_name = "mobilekit"
    return ir.to_proto(model)


def read_taps(model: onnx.ModelProto, path: Path) -> dict[str, str]:
    """Return layer path → value name, as :func:`finish` wrote them.

    Raises:
        InvalidInputError: If the file has none.
    """
    for entry in model.metadata_props:
        if entry.key == TAPS_KEY:
            taps: dict[str, str] = json.loads(entry.value)
            return taps
    raise InvalidInputError(
        f"{path} does not say which values its layers put out",
        hint="Export it anew with this version of mobilekit.",
    )


def save(model: onnx.ModelProto, out: Path, *, inline_limit: int = _INLINE_LIMIT) -> list[str]:
    """Write ``model`` into the directory ``out``; return the names of the files.

    One file below ``inline_limit`` bytes of weights; above it a second one holds the weights.
    """
    path = out / MODEL_FILE
    if sum(map(_nbytes, model.graph.initializer)) < inline_limit:
        onnx.save_model(model, path)
        return [MODEL_FILE]
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location=DATA_FILE,
        size_threshold=_EXTERNAL_THRESHOLD,
    )
    return [MODEL_FILE, DATA_FILE]


def weight_record(path: Path, precision: str) -> WeightRecord:
    """Count the weights of the file at ``path`` by the dtype they are stored in.

    Integer constants (shapes, axes, expert ids) and rotary tables are no weights; scales count as
    "scales", and codes as "uint4" or "uint8" by the operator that reads them.
    """
    graph = onnx.load(path, load_external_data=False).graph
    roles = _roles(graph)
    stored: Counter[str] = Counter()
    for tensor in graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        role = roles.get(tensor.name, dtype)
        if role not in ("int64", "int32", "bool", _TABLE):
            stored[role] += _nbytes(tensor)
    weights = sum(count for role, count in stored.items() if role != _SCALES)
    return WeightRecord(
        bytes_by_dtype=dict(stored), share_at_precision=stored[_STORED[precision]] / weights
    )


def operator_counts(path: Path) -> Mapping[str, int]:
    """Return how many nodes of each operator the file has, most frequent first."""
    graph = onnx.load(path, load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())


def minimum_runtime(path: Path) -> str:
    """Return the oldest ONNX Runtime that is known to compute the file at ``path`` right.

    1.23 runs all but ``QMoE``, and has other results for windows and caps of attention; versions
    between it and the one that was developed on were not tried.
    """
    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.op_type == "QMoE" or _NEWER & {attribute.name for attribute in node.attribute}:
            return "1.32"
    return "1.23"


def _roles(graph: onnx.GraphProto) -> dict[str, str]:
    """Return what the operators use initializers as, by name: codes, scales, rotary tables.

    Scales reach their operator through a ``Cast`` and perhaps an ``Unsqueeze``.
    """
    sources = {n.output[0]: n.input[0] for n in graph.node if n.op_type in ("Cast", "Unsqueeze")}
    roles: dict[str, str] = {}
    for node in graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        for codes, scales, bits in _CODES_AND_SCALES.get(node.op_type, ()):
            roles[node.input[codes]] = f"uint{attributes[bits]}"
            name = node.input[scales]
            while name in sources:
                name = sources[name]
            roles[name] = _SCALES
        if node.op_type == "GroupQueryAttention":
            roles.update(dict.fromkeys(node.input[7:9], _TABLE))
    return roles


def _nbytes(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
