"""Two converted programs → one multifunction package; its bytes depend on the model alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilekit.core.files import atomic_write, atomic_write_json, read_json
from mobilekit.runtime.mil import load_spec
from mobilekit.runtime.mil.package import root_model
from mobilekit.runtime.mil.tools import quiet

from .convert import Converted, validated_once

PACKAGE = "model.mlpackage"
LAYERS_KEY = "mobilekit.layers"  # user-defined metadata: JSON list of layer paths
DEFAULT_FUNCTION = "decode"
SPECIFICATION_VERSION = 9  # iOS 18
_SHOWN = {  # what Xcode shows beside each input and output
    "input_ids": "Token ids, as many as the function takes.",
    "input_pos": "Position of the first of them; 0 starts a text.",
    "logits": "Scores of the token that follows the last one.",
}


def write_package(converted: Mapping[str, Converted], layers: tuple[str, ...], out: Path) -> Path:
    """Join functions into ``out/model.mlpackage``; equal weights are stored once.

    Args:
        converted: One program by the name its function gets.
        layers: Paths of the layers, kept in the package for diagnosis.
        out: Directory to write into.

    Returns:
        Path of the package.
    """
    target = out / PACKAGE
    with quiet():
        program = _joined(converted)
        _share_weights(program)
        program.validate()
        with validated_once():
            _save(program, _description(converted), target)
    _normalise(target, layers)
    return target


def _joined(converted: Mapping[str, Converted]) -> Any:
    from coremltools.converters.mil import mil

    program = mil.Program()
    for name, one in converted.items():
        program.add_function(name, one.function)
    program.default_function_name = DEFAULT_FUNCTION
    return program


def _share_weights(program: Any) -> None:
    """Make constants of equal value one entry of the weight file, across functions."""
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    PASS_REGISTRY["common::const_deduplication"]._deduplicate_const_across_functions(program)


def _description(converted: Mapping[str, Converted]) -> Any:
    from coremltools.proto import Model_pb2

    functions = []
    for name, each in converted.items():
        one = each.description
        for item in (*one.input, *one.output):
            item.shortDescription = _SHOWN[item.name]
        functions.append(
            Model_pb2.FunctionDescription(
                name=name, input=one.input, output=one.output, state=one.state
            )
        )
    return Model_pb2.ModelDescription(functions=functions, defaultFunctionName=DEFAULT_FUNCTION)


def _save(program: Any, description: Any, target: Path) -> None:
    """Write what ``coremltools.utils.save_multifunction`` writes.

    That function takes saved packages only: quantizing first would send each through the whole
    conversion again, and joining would read both back, which doubles the time.
    """
    import coremltools as ct
    from coremltools.converters.mil.converter import mil_convert

    program.skip_all_passes = True  # each function has had them
    program.export_as_multifunction = True
    model = mil_convert(
        program,
        convert_to="mlprogram",
        convert_from="milinternal",
        specification_version=SPECIFICATION_VERSION,
        compute_units=ct.ComputeUnit.ALL,
        model_description=description,
        skip_model_load=True,
    )
    # not model.save(), which adds ExecuTorch debug handles that only a quantized program lacks
    ct.utils.save_spec(model.get_spec(), str(target), weights_dir=model.weights_dir)


def package_files(package: Path) -> tuple[str, ...]:
    """Return the package's files relative to its parent, the manifest first."""
    files = sorted(p for p in package.rglob("*") if p.is_file() and p.name != "Manifest.json")
    ordered = [package / "Manifest.json", *files]
    return tuple(p.relative_to(package.parent).as_posix() for p in ordered)


def _normalise(package: Path, layers: tuple[str, ...]) -> None:
    """Rewrite what coremltools fills with random identifiers or in random order."""
    spec = load_spec(package)
    description = spec.description.metadata
    description.shortDescription = "Decoder language model: token ids in, next-token logits out."
    description.userDefined[LAYERS_KEY] = json.dumps(layers)
    model = root_model(package)
    atomic_write(model, spec.SerializeToString(deterministic=True))
    manifest = read_json(package / "Manifest.json")
    entries = manifest["itemInfoEntries"]
    names = {key: str(uuid.uuid5(uuid.NAMESPACE_URL, e["path"])) for key, e in entries.items()}
    renamed = {names[key]: entry for key, entry in entries.items()}
    manifest["itemInfoEntries"] = dict(sorted(renamed.items()))
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    atomic_write_json(package / "Manifest.json", manifest)
