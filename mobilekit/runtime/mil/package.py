"""Open a saved ``.mlpackage`` without Core ML: every part checked before a library touches it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilekit.core.errors import InvalidInputError, MobileKitError
from mobilekit.core.files import read_json, safe_join
from mobilekit.core.optional import require

from .program import MilFunction
from .tools import coremltools, quiet

_BLOB_MAGIC = 0xDEADBEEF
_BLOB_HEADER = struct.Struct("<IIQQ")  # magic, dtype, bytes, offset of the data


def load_spec(path: Path) -> Any:
    """Return the protobuf model of a package.

    Raises:
        InvalidInputError: If the package is incomplete or damaged.
        MissingDependencyError: If coremltools is not installed.
    """
    model_path = root_model(path)
    coremltools()
    from coremltools import proto

    decode_error = require("google.protobuf.message", extra="coreml").DecodeError
    spec = proto.Model_pb2.Model()
    try:
        spec.ParseFromString(model_path.read_bytes())
    except decode_error:
        raise _damaged(path, f"{model_path.name} cannot be parsed") from None
    if spec.WhichOneof("Type") != "mlProgram" or not spec.mlProgram.functions:
        raise _damaged(path, f"{model_path.name} holds no ML program")
    for blob in blobs(spec):
        _check_blob(path, blob)
    return spec


def load_functions(path: Path) -> dict[str, MilFunction]:
    """Return every function of a package, ready to run.

    Raises:
        InvalidInputError: If the package is incomplete or damaged.
        UnsupportedMilOp: If the evaluator lacks one of its operations.
    """
    program = load_program(path)
    return {name: MilFunction(function) for name, function in program.functions.items()}


def load_program(path: Path) -> Any:
    """Return the pymil program of a package."""
    spec = load_spec(path)
    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            return load(
                spec,
                specification_version=spec.specificationVersion,
                file_weights_dir=str(weights_path(path).parent),
            )
        except MobileKitError:
            raise
        except Exception as error:  # the loader's checks raise whatever comes to hand
            reason = f"its program cannot be loaded: {type(error).__name__}: {error}"
            raise _damaged(path, reason.splitlines()[0]) from error


def root_model(path: Path) -> Path:
    """Return the path of the package's model file, as its manifest names it."""
    manifest = read_json(path / "Manifest.json")
    try:
        item = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
        model = safe_join(path / "Data", item["path"])
    except (KeyError, TypeError) as error:
        raise _damaged(path, f"Manifest.json lacks {error}") from None
    if not model.is_file():
        raise _damaged(path, f"{model.name} is missing")
    return model


def weights_path(path: Path) -> Path:
    """Return the path of the file that holds the large constants."""
    return path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def blobs(spec: Any) -> Iterator[Any]:
    """Yield every value of the program that is kept in the weight file."""
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                for value in _values(operation):
                    if value.WhichOneof("value") == "blobFileValue":
                        yield value


def _values(operation: Any) -> Iterator[Any]:
    yield from operation.attributes.values()
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                yield binding.value


def _check_blob(path: Path, value: Any) -> None:
    """Refuse a constant whose bytes are not all there; the library would read past the end."""
    weights, offset = weights_path(path), value.blobFileValue.offset
    if not weights.is_file():
        raise _damaged(path, f"{weights.name} is missing")
    size = weights.stat().st_size
    with weights.open("rb") as stream:
        stream.seek(offset)
        header = stream.read(_BLOB_HEADER.size)
    if len(header) < _BLOB_HEADER.size:
        raise _damaged(path, f"{weights.name} ends at byte {size}, before a constant at {offset}")
    magic, _, count, start = _BLOB_HEADER.unpack(header)
    if magic != _BLOB_MAGIC or start + count > size:
        raise _damaged(path, f"{weights.name} has no whole constant at byte {offset}")


def _damaged(path: Path, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is not a whole Core ML package: {reason}",
        hint="Copy the package again, or export it anew.",
    )
