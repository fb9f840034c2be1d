"""What is to be measured: the artifacts of a bundle, or a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mobilekit.core.errors import UsageError
from mobilekit.runtime import is_bundle
from mobilekit.runtime.sources import checkpoint_facts
from mobilekit.schema.bundle import Bundle, open_bundle
from mobilekit.schema.manifest import Artifact, TensorSpec
from mobilekit.schema.result import ArtifactRef

INTERFACE = "token-logits/1"
_PAST = "past_"


@dataclass(frozen=True)
class Target:
    """One thing to measure.

    Attributes:
        ref: Its id, hash and bytes, as they stand in results.
        root: Directory of the bundle or checkpoint.
        artifact: Id in the bundle; ``None`` for a checkpoint.
        format: "pte", "onnx", "mlpackage" or "torch".
        runtime: Name of the runtime that it needs.
        precision: Of an artifact, as its manifest says.
        context_length: Positions, where known before it is opened.
        state_bytes: Bytes of the KV cache at full length, where the manifest lists its shapes.
        is_requested: Whether the user named it.
    """

    ref: ArtifactRef
    root: Path
    artifact: str | None
    format: str
    runtime: str
    precision: str | None
    context_length: int | None
    state_bytes: int | None = None
    is_requested: bool = False
    keep: object = field(default=None, repr=False, compare=False)  # holds an unpacked zip alive


def targets_of(
    source: str | Path, artifacts: Sequence[str] | None, label: str | None
) -> list[Target]:
    """Return what to measure, in manifest order.

    Args:
        source: Bundle, checkpoint directory, or "embedded".
        artifacts: Ids, targets, back ends or formats; everything where ``None``.
        label: Id of a checkpoint in its results.

    Raises:
        UsageError: If a name matches nothing, or the bundle is of another interface.
        InvalidInputError: If the source is damaged.
    """
    if not is_bundle(source):
        return [_checkpoint(source, artifacts, label)]
    bundle = open_bundle(source)
    manifest = bundle.manifest
    if manifest.interface != INTERFACE:
        raise UsageError(
            f"{source} has interface {manifest.interface}",
            hint=f"Profiling runs bundles of interface {INTERFACE}.",
        )
    if artifacts is None:
        chosen = {item.id for item in manifest.artifacts}
    else:
        chosen = {item.id for name in artifacts for item in _matching(bundle, name)}
    return [
        _artifact(bundle, item, is_requested=artifacts is not None)
        for item in manifest.artifacts
        if item.id in chosen
    ]


def _matching(bundle: Bundle, name: str) -> list[Artifact]:
    """Return the artifact of that id, or all of that target, back end or format."""
    first = bundle.artifact(name)
    if name == first.id:
        return [first]
    same = [item for item in bundle.manifest.artifacts if item.format == first.format]
    return [item for item in same if name != first.backend or item.backend == name]


def _artifact(bundle: Bundle, item: Artifact, *, is_requested: bool) -> Target:
    return Target(
        ref=ArtifactRef(
            id=item.id,
            sha256=item.sha256,
            bytes=item.total_bytes,
        ),
        root=bundle.root,
        artifact=item.id,
        format=item.format,
        runtime=item.runtime.name,
        precision=item.precision,
        context_length=int(bundle.manifest.model["context_length"]),
        state_bytes=state_bytes(item, int(bundle.manifest.model["context_length"])),
        is_requested=is_requested,
        keep=bundle,
    )


def _checkpoint(source: str | Path, artifacts: Sequence[str] | None, label: str | None) -> Target:
    for name in artifacts or ():
        if name not in ("torch", label):
            raise UsageError(
                f"artifact '{name}' was asked for, but {source} is a checkpoint, not a bundle",
                hint="Export it first: mobilekit export MODEL --out DIR",
            )
    facts = checkpoint_facts(source)
    return Target(
        ref=ArtifactRef(
            id=label or "torch", sha256=facts.hash.removeprefix("sha256:"), bytes=facts.bytes
        ),
        root=facts.path,
        artifact=None,
        format="torch",
        runtime="torch",
        precision=None,
        context_length=facts.context_length,
        is_requested=True,
    )


def state_bytes(item: Artifact, context_length: int) -> int | None:
    """Return the bytes of an artifact's state at full length, of its largest program.

    That is what a program lists as states, or takes as ``past_…`` inputs; the free dimension of a
    key-value cache is the length. ``None`` where a manifest lists neither, or an unknown dtype.
    """
    sizes = []
    for program in item.programs.values():
        past = [spec for spec in program.inputs if spec.name.startswith(_PAST)]
        widths = [_nbytes(spec, context_length) for spec in (*program.states, *past)]
        if widths and None not in widths:
            sizes.append(sum(width for width in widths if width is not None))
    return max(sizes, default=None)


def _nbytes(spec: TensorSpec, context_length: int) -> int | None:
    try:
        width = np.dtype(spec.dtype).itemsize
    except TypeError:
        return None
    lengths = [context_length if isinstance(n, str) else n for n in spec.shape]
    return width * math.prod(lengths)
