"""Open one artifact with as little as it needs: import its library first, then load."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from mobilekit.core.optional import require
from mobilekit.runtime import RUNTIMES, TokenLogits
from mobilekit.runtime import open as open_runtime
from mobilekit.runtime.sources import checkpoint_facts, import_checkpoint_code
from mobilekit.schema.bundle import open_bundle

# format -> (the extra that brings it, what must be imported before loading can be timed)
_LIBRARIES = {
    "mlpackage": ("coreml", ("coremltools",)),
    "onnx": ("onnx", ("onnxruntime",)),
    "pte": ("executorch", ("executorch.runtime",)),
}
_NAMED = ("coremltools", "executorch", "onnx", "onnxruntime", "torch", "torchao", "transformers")


@dataclass(frozen=True)
class Prepared:
    """Something that can be loaded now: nothing is left to import or to check."""

    load: Callable[[], TokenLogits]
    precision: str | None


def prepare(source: str, artifact: str | None, threads: int | None) -> Prepared:
    """Check an artifact's bytes and import its library.

    Args:
        source: Bundle directory, or checkpoint directory.
        artifact: Artifact id; ``None`` for a checkpoint.
        threads: Compute threads, or the runtime's own choice.

    Raises:
        InvalidInputError: If a file is missing or has changed.
        MissingDependencyError: If the runtime's library is not installed.
    """
    if artifact is None:
        import_checkpoint_code(checkpoint_facts(source).class_name)
        return Prepared(lambda: open_runtime(source, threads=threads), None)
    bundle = open_bundle(source)
    record = bundle.artifact(artifact)
    path = bundle.artifact_path(record)
    extra, modules = _LIBRARIES[record.format]
    for module in modules:
        require(module, extra=extra)
    model = bundle.manifest.model
    make = RUNTIMES.get(record.format)
    return Prepared(
        lambda: make(
            path,
            context_length=int(model["context_length"]),
            vocab_size=int(model["vocab_size"]),
            threads=threads,
        ),
        record.precision,
    )


def imported_libraries() -> tuple[str, ...]:
    """Return which machine-learning libraries this process has imported."""
    return tuple(name for name in _NAMED if name in sys.modules)
