"""What can be known about a checkpoint before it is opened for running."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint on disk.

    Attributes:
        path: Its directory.
        hash: ``sha256:…`` over all that defines the model.
        bytes: Bytes of its weights.
        class_name: The architecture that its config names.
        context_length: Positions that its config allows, or ``None`` where it does not say.
    """

    path: Path
    hash: str
    bytes: int
    class_name: str
    context_length: int | None


def checkpoint_facts(source: str | Path) -> CheckpointFacts:
    """Return the facts of a checkpoint; no weight is read into memory.

    Raises:
        InvalidInputError: If it is no checkpoint, or its weights are not whole.
        UnsupportedModelError: If no family covers its class.
    """
    from mobilekit.models import checkpoint_hash, resolve, tensor_table
    from mobilekit.models.inspect import class_name, read_config

    path = resolve(source)
    config = read_config(path)
    positions = config.get("max_position_embeddings")
    return CheckpointFacts(
        path=path,
        hash=checkpoint_hash(path),
        bytes=sum(entry.nbytes for entry in tensor_table(path).values()),
        class_name=class_name(path, config),
        context_length=positions if isinstance(positions, int) else None,
    )


def import_checkpoint_code(class_name: str) -> None:
    """Import all that opening a checkpoint of this class needs, so that loading can be timed."""
    import transformers

    from mobilekit.models import checkpoint, families
    from mobilekit.runtime import torch

    del checkpoint, families, torch
    getattr(transformers, class_name)  # transformers imports a model's module at first use
