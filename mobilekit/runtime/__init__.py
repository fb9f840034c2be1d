"""Run a model wherever it lives: torch checkpoint, ``.pte``, ``.onnx``, ``.mlpackage``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mobilekit.core.errors import UsageError
from mobilekit.core.registry import Registry
from mobilekit.schema.bundle import Bundle, open_bundle
from mobilekit.schema.manifest import MANIFEST_FILE, Artifact

from .base import FullLogits, TokenLogits

# file format -> class whose constructor takes (path, *, context_length, vocab_size, threads)
RUNTIMES: Registry[Callable[..., TokenLogits]] = Registry("format")
RUNTIMES.register("mlpackage", "mobilekit.runtime.coreml:CoreMLRuntime")
RUNTIMES.register("onnx", "mobilekit.runtime.onnx:OnnxRuntime")
RUNTIMES.register("pte", "mobilekit.runtime.executorch:ExecutorchRuntime")


def is_bundle(path: str | Path) -> bool:
    """Tell a bundle (directory with a manifest, or a zip) from a checkpoint."""
    path = Path(path)
    return (path / MANIFEST_FILE).is_file() or (path.is_file() and path.suffix == ".zip")


def open(  # noqa: A001 - the public face calls it so
    source: str | Path,
    target: str | None = None,
    *,
    precision: str | None = None,
    threads: int | None = None,
) -> TokenLogits:
    """Open a checkpoint, or an artifact of a bundle, for running.

    Args:
        source: Bundle directory or zip, checkpoint directory, or "embedded".
        target: Artifact id, target or back end; the first artifact where ``None``.
        precision: Which precision of that target.
        threads: Compute threads; the runtime's own choice where ``None``.

    Raises:
        UsageError: If the bundle has no such artifact.
        InvalidInputError: If a file is missing or fails its checksum.
    """
    if is_bundle(source):
        bundle = open_bundle(source)
        return open_artifact(bundle, bundle.artifact(target, precision=precision), threads=threads)
    if target not in (None, "torch"):
        raise UsageError(
            f"target '{target}' was asked for, but {source} is a checkpoint, not a bundle",
            hint="Export it first: mobilekit export MODEL --out DIR",
        )
    return _open_checkpoint(source, threads)


def open_artifact(bundle: Bundle, artifact: Artifact, *, threads: int | None = None) -> TokenLogits:
    """Open one artifact of an open bundle, checksums verified."""
    if bundle.manifest.interface != "token-logits/1":
        raise UsageError(
            f"{bundle.name} has interface {bundle.manifest.interface}",
            hint="This call runs bundles of interface token-logits/1.",
        )
    runtime = RUNTIMES.get(artifact.format)(
        bundle.artifact_path(artifact),
        context_length=int(bundle.manifest.model["context_length"]),
        vocab_size=int(bundle.manifest.model["vocab_size"]),
        threads=threads,
    )
    runtime.bundle = bundle  # type: ignore[attr-defined]  # a zip's unpacked copy must outlive it
    return runtime


def _open_checkpoint(source: str | Path, threads: int | None) -> TokenLogits:
    import torch

    from mobilekit.models import load

    from .torch import TorchRuntime

    if threads is not None:
        torch.set_num_threads(threads)
    return TorchRuntime(load(source))


__all__ = ["FullLogits", "TokenLogits", "is_bundle", "open", "open_artifact"]
