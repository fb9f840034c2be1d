"""Two converted programs → one multifunction package whose bytes depend on nothing but the model."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilekit.core.files import atomic_write, atomic_write_json, read_json
from mobilekit.runtime.mil import load_spec
from mobilekit.runtime.mil.package import root_model
from mobilekit.runtime.mil.tools import coremltools, quiet

PACKAGE = "model.mlpackage"
LAYERS_KEY = "mobilekit.layers"  # user-defined metadata: JSON list of layer paths
DEFAULT_FUNCTION = "decode"


def write_package(models: Mapping[str, Any], layers: tuple[str, ...], out: Path) -> Path:
    """Join single-function models into ``out/model.mlpackage``; equal weights are stored once.

    Args:
        models: ``MLModel`` by the name its function gets.
        layers: Paths of the layers, kept in the package for diagnosis.
        out: Directory to write into.

    Returns:
        Path of the package.
    """
    target = out / PACKAGE
    with quiet(), tempfile.TemporaryDirectory(prefix="mobilekit-coreml-") as holder:
        utils = coremltools().utils
        descriptor = utils.MultiFunctionDescriptor()
        for name, model in models.items():
            single = str(Path(holder) / f"{name}.mlpackage")
            model.save(single)
            descriptor.add_function(
                single, src_function_name="main", target_function_name=name
            )
        descriptor.default_function_name = DEFAULT_FUNCTION
        utils.save_multifunction(descriptor, str(target))
    _normalise(target, layers)
    return target


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
    manifest["itemInfoEntries"] = {names[key]: entries[key] for key in sorted(entries, key=names.get)}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    atomic_write_json(package / "Manifest.json", manifest)
