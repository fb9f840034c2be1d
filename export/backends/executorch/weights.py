"""What a written ``.pte`` stores: every constant counted from the file, by storage dtype."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
    XNNHeader,
    _get_schema_bytes,
)
from executorch.exir._serialize._flatbuffer import _flatc_decompile
from executorch.exir._serialize._program import PTEFile, deserialize_pte_binary
from executorch.exir.schema import KernelCall, Tensor

from mobilekit.core.errors import InvalidInputError
from mobilekit.schema.manifest import WeightRecord

SCALES = "scales"
_OTHER = "other"

_XNNPACK_DTYPES = {
    "xnn_datatype_fp32": "float32",
    "xnn_datatype_fp16": "float16",
    "xnn_datatype_bf16": "bfloat16",
    "xnn_datatype_qint8": "int8",
    "xnn_datatype_qcint8": "int8",
    "xnn_datatype_qcint4": "int4",
    "xnn_datatype_qbint4": "int4",
    "xnn_datatype_qint32": "int32",
    "xnn_datatype_qcint32": "int32",
}
_SCALAR_DTYPES = {
    "BYTE": "uint8",
    "CHAR": "int8",
    "HALF": "float16",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "BFLOAT16": "bfloat16",
}
_STORAGE_BITS = {"int4": 4, "int8": 8, "uint8": 8, "float16": 16, "bfloat16": 16}
_PRECISION_DTYPE = {"fp32": "float32", "fp16": "float16", "int8": "int8", "int4": "int4"}


@dataclass(frozen=True)
class StoredConstant:
    """One constant of the file.

    Attributes:
        dtype: Storage dtype, "scales", or "other" for what cannot be a weight (indices).
        data: Its bytes, as stored.
        is_inline: Whether it is part of a delegate's graph, so that only its size is known.
    """

    dtype: str
    data: bytes
    is_inline: bool = False


def read_pte(path: Path) -> PTEFile:
    """Parse a ``.pte``.

    Raises:
        InvalidInputError: If the file is not one, or is damaged.
    """
    try:
        return deserialize_pte_binary(path.read_bytes())
    except Exception as error:  # the parser fails in many ways on damaged bytes
        raise InvalidInputError(
            f"{path} cannot be read as an ExecuTorch program ({type(error).__name__})",
            hint="Export the model again.",
        ) from error


def count_weights(pte: PTEFile, precision: str, *, not_weights: set[str]) -> WeightRecord:
    """Count the bytes of the weights by storage dtype.

    Args:
        pte: The parsed file.
        precision: Precision whose share is asked for.
        not_weights: SHA-256 of constants that are no weights; scalars never are.
    """
    counted: Counter[str] = Counter()
    for constant in stored_constants(pte):
        is_scalar = len(constant.data) * 8 <= _bits(constant.dtype)
        if constant.dtype == _OTHER or (is_scalar and constant.dtype != SCALES):
            continue
        if hashlib.sha256(constant.data).hexdigest() not in not_weights:
            counted[constant.dtype] += len(constant.data)
    weights = {dtype: size for dtype, size in counted.items() if dtype != SCALES}
    total = sum(weights.values())
    share = weights.get(_PRECISION_DTYPE[precision], 0) / total if total else 0.0
    return WeightRecord(bytes_by_dtype=dict(sorted(counted.items())), share_at_precision=share)


def stored_constants(pte: PTEFile) -> Iterator[StoredConstant]:
    """Yield every constant of the file once: the program's own, then the delegates' others.

    What is equal is stored once (see ``share``), except for scales that a delegate has inline.
    """
    seen: set[bytes] = set()
    for constant in chain(_program_constants(pte), _delegate_constants(pte)):
        digest = hashlib.sha256(constant.data).digest()
        if digest not in seen or constant.is_inline:
            seen.add(digest)
            yield constant


def _bits(dtype: str) -> int:
    return _STORAGE_BITS.get(dtype, 32)


def _program_constants(pte: PTEFile) -> Iterator[StoredConstant]:
    plan = pte.program.execution_plan[0]
    operands = _embedding_operands(plan)
    seen: set[int] = set()
    for index, value in enumerate(plan.values):
        tensor = value.val
        if not isinstance(tensor, Tensor) or tensor.allocation_info is not None:
            continue
        buffer = tensor.data_buffer_idx
        if buffer == 0 or buffer in seen:  # 0 means "no data"
            continue
        seen.add(buffer)
        dtype = _SCALAR_DTYPES.get(tensor.scalar_type.name, _OTHER)
        data = bytes(pte.program.constant_buffer[buffer].storage)
        yield StoredConstant(operands.get(index, dtype), data[: _length(tensor, dtype)])


def _length(tensor: Tensor, dtype: str) -> int | None:
    """Bytes that the shape asks for; what is stored may be padded."""
    if dtype == _OTHER:
        return None
    count = 1
    for size in tensor.sizes:
        count *= size
    return count * (64 if dtype == "float64" else _bits(dtype)) // 8


def _embedding_operands(plan: Any) -> dict[int, str]:
    """Return what is stored in the values that quantized embedding operators read."""
    found: dict[int, str] = {}
    for steps in plan.chains:
        for instruction in steps.instructions:
            call = instruction.instr_args
            if not isinstance(call, KernelCall):
                continue
            name = plan.operators[call.op_index].name
            if name.startswith("quantized_decomposed::embedding"):
                weight, scales, zero_points = call.args[:3]
                found.update({scales: SCALES, zero_points: SCALES})
                if name.endswith("_4bit"):
                    found[weight] = "int4"  # two of them in each byte of a uint8 tensor
    return found


def _delegate_constants(pte: PTEFile) -> Iterator[StoredConstant]:
    named = pte.named_data
    seen: set[str] = set()
    for delegate in pte.program.execution_plan[0].delegates:
        processed = bytes(pte.program.backend_delegate_data[delegate.processed.index].data)
        graph, inline = _xnnpack_graph(processed)
        for index, dtype in _constants_of(graph).items():
            entry = graph["constant_data"][index]
            key = entry["named_key"]
            if not key:
                start = entry["offset"]
                yield StoredConstant(dtype, inline[start : start + entry["size"]])
            elif key not in seen:  # delegates share data by name
                seen.add(key)
                buffer = named.buffers[named.pte_data[key].buffer_index]
                yield StoredConstant(dtype, bytes(buffer)[: entry["size"] or None])
        yield from _inline_scales(graph)


def _constants_of(graph: dict[str, Any]) -> dict[int, str]:
    """Return the storage dtype of each entry of the graph's constant table that is used."""
    dtypes: dict[int, str] = {}
    for value in graph["xvalues"]:
        tensor, quantization = _tensor_of(value)
        if tensor["constant_buffer_idx"]:
            dtypes[tensor["constant_buffer_idx"]] = _XNNPACK_DTYPES[tensor["datatype"]]
        if quantization.get("scale_buffer_idx"):
            dtypes[quantization["scale_buffer_idx"]] = SCALES
    return dtypes


def _inline_scales(graph: dict[str, Any]) -> Iterator[StoredConstant]:
    for value in graph["xvalues"]:
        scale = _tensor_of(value)[1].get("scale")
        if isinstance(scale, list) and scale:
            yield StoredConstant(SCALES, b"\0\0\0\0" * len(scale), is_inline=True)


def _tensor_of(value: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    union = value["xvalue_union"]
    if "tensor_value" in union:  # a quantized value wraps a plain one
        return union["tensor_value"], union.get("quant_params") or {}
    return union, {}


def _xnnpack_graph(processed: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the graph of a delegate as JSON values, and its inline constant data."""
    header = XNNHeader.from_bytes(processed[: XNNHeader.EXPECTED_LENGTH])
    start = header.flatbuffer_offset
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(_get_schema_bytes())
        binary.write_bytes(processed[start : start + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        graph: dict[str, Any] = json.loads(Path(folder, "graph.json").read_text())
    offset = header.constant_data_offset
    return graph, processed[offset : offset + header.constant_data_size]
